"""Tracking: the MLflow logger, what a run records of itself, and the glossary of metrics."""

from dsob_pl.tracking.glossary import GLOSSARY, glossary_table, unknown_metrics
from dsob_pl.tracking.mlflow_logger import MLflowLogger
from dsob_pl.tracking.record import RecordRun
from dsob_pl.tracking.seeds import compact_seeds, seed_loggers

__all__ = [
    "GLOSSARY",
    "MLflowLogger",
    "RecordRun",
    "compact_seeds",
    "glossary_table",
    "seed_loggers",
    "unknown_metrics",
]
