"""Tracking: the MLflow logger, what a run records of itself, and the glossary of metrics."""

from dsob_pl.tracking.glossary import GLOSSARY, glossary_table, unknown_metrics
from dsob_pl.tracking.mlflow_logger import MLflowLogger
from dsob_pl.tracking.record import RecordRun

__all__ = ["GLOSSARY", "MLflowLogger", "RecordRun", "glossary_table", "unknown_metrics"]
