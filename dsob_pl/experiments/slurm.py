"""Cells as an array job of SLURM: submitted, not waited for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from threading import Event
from typing import Any, Literal

from dsob_pl.errors import UsageError
from dsob_pl.experiments.schedule import Watch
from dsob_pl.experiments.worker import Job, Outcome, run_cell

_SHORTEST_MINUTES = 1


@dataclass(frozen=True)
class Slurm:
    """What is asked of SLURM for each cell.

    Attributes:
        partition: None is the cluster's default.
        minutes: after which a cell is cut off; the next sweep goes on from its checkpoint.
        at_once: cells at a time; None leaves it to SLURM.
        threads: CPUs of each cell.
        executor: of submitit; "local" runs the same jobs as processes of this machine.
    """

    partition: str | None = None
    minutes: int = 24 * 60
    at_once: int | None = None
    threads: int = 1
    executor: Literal["slurm", "local"] = "slurm"

    def check(self) -> None:
        """Raises UsageError where submitit or a program of SLURM is missing."""
        if find_spec("submitit") is None:
            raise UsageError("sweep: on: 'slurm' needs submitit; install it with pip install 'dsob_pl[sweep]'")
        for program in ("sbatch", "srun") if self.executor == "slurm" else ():
            if shutil.which(program) is None:
                raise UsageError(
                    f"sweep: on: 'slurm' needs {program}, which is not on the PATH; start the sweep on a login node of "
                    "the cluster, or list the commands with --dry-run"
                )

    def __call__(
        self, jobs: Sequence[Job], stop: Event, watch: Watch, begin: Callable[[], None] = lambda: None
    ) -> dict[str, Outcome]:
        """Submits ``jobs`` as one array job through submitit and returns at once: their outcome is "submitted".

        Scripts, pickled jobs and logs are in runs/SUITE/slurm. The same sweep again shows what has become of them,
        and goes on with what was cut off.

        Args:
            jobs: the cells.
            stop: is not looked at.
            watch: called once, with the outcomes.
            begin: called before anything is submitted, since a job may start at once.

        Raises:
            UsageError: submitit or a program of SLURM is missing, or SLURM refuses; nothing has been submitted.
        """
        self.check()
        if not jobs:
            return {}
        import submitit
        from submitit.core.utils import FailedJobError

        folder = jobs[0].folder / "slurm"
        executor: Any = submitit.AutoExecutor(folder=str(folder), cluster=self.executor)
        executor.update_parameters(name=jobs[0].cell.suite, timeout_min=max(_SHORTEST_MINUTES, self.minutes))
        if self.executor == "slurm":
            executor.update_parameters(
                cpus_per_task=self.threads,
                slurm_array_parallelism=self.at_once or len(jobs),
                **({"slurm_partition": self.partition} if self.partition else {}),
            )
        begin()
        try:
            with redirect_stderr(StringIO()):  # submitit prints what it raises
                submitted = executor.map_array(run_cell, list(jobs))
        except FailedJobError as error:
            reason = (
                " ".join(re.sub("sbatch: (error: )?", "", str(error)).split())[:200] or "sbatch failed without a word"
            )
            raise UsageError(f"sweep: on: SLURM refuses: {reason}") from error
        print(f"submitted {len(jobs)} cells as job {submitted[0].job_id.partition('_')[0]}; scripts and logs: {folder}")
        outcomes = {
            job.cell.name: Outcome("submitted", f"job {handle.job_id}", True) for job, handle in zip(jobs, submitted)
        }
        watch(outcomes)
        return outcomes
