"""Tracking: the MLflow logger, what a run records of itself, and the glossary of metrics."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dsob_pl.tracking.glossary import GLOSSARY, glossary_table, unknown_metrics

if TYPE_CHECKING:
    from dsob_pl.tracking.mlflow_logger import MLflowLogger
    from dsob_pl.tracking.record import RecordRun
    from dsob_pl.tracking.seeds import seed_loggers

__all__ = [
    "GLOSSARY",
    "MLflowLogger",
    "RecordRun",
    "glossary_table",
    "seed_loggers",
    "unknown_metrics",
]

# Imported when asked for: whoever only reads runs does not wait ten seconds for Lightning and torch.
_MODULES = {"MLflowLogger": "mlflow_logger", "RecordRun": "record", "seed_loggers": "seeds"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
