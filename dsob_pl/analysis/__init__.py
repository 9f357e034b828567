"""Analysis of a suite: runs become tidy tables, tables become statistics, figures and a page."""

from dsob_pl.analysis.merge import merge, read_csvs
from dsob_pl.analysis.runs import read_suite
from dsob_pl.analysis.tables import Results, read_csv, to_csv

__all__ = ["Results", "merge", "read_csv", "read_csvs", "read_suite", "to_csv"]
