import os

# Before torch is imported: many small networks on few cores run slower on more threads than on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import pytest
import torch
from databases import copy_new_databases


@pytest.fixture(autouse=True)
def _one_thread_fixed_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_tracking_uri(monkeypatch):
    """MLflow puts the uri that it was given into the environment, for processes that come after: other tests' too."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(autouse=True)
def _new_databases_are_copies():
    copy_new_databases()


@pytest.fixture
def float64():
    """Float64 as the default type: tests of mathematics must not measure rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
