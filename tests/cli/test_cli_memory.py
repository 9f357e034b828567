"""Freed memory is kept by the process, unless its user decides otherwise."""

import subprocess
import sys

import pytest
from cli_project import environment

FAULTS = """
import resource, torch
from dsob_pl.cli.memory import keep_freed_memory
kept = keep_freed_memory()
torch.set_num_threads(1)
def round():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
round()
print(kept, round())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
@pytest.mark.parametrize("own", [False, True])
def test_memory_that_is_used_again_costs_no_page_faults(own):
    wish = {"MALLOC_MMAP_THRESHOLD_": "100000"} if own else {}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=environment() | wish, capture_output=True, text=True, check=True, timeout=100)
    kept, faults = done.stdout.split()
    assert kept == str(not own)
    assert (int(faults) < 500) != own  # 20 blocks of 8 MB are 39,000 pages
