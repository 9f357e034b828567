"""The table of a sweep: the state of every cell, its score so far, and when all of it will be done."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TextIO

from dsob_pl.experiments.worker import MARK, Job, Outcome, tail
from dsob_pl.seeds import parse_seeds
from dsob_pl.tracking.store import PARENT_TAG, SUPERSEDED_TAG, all_runs

_STEP = re.compile(r"step ([\d,]+)/([\d,]+)(?:.*? eta (\S+))?")
_REFRESH_SECONDS, _SCORE_SECONDS = 2.0, 10.0
# What is shown where not every cell has a line.
_ORDER = ("running", "died", "failed", "stopped", "finished", "submitted", "waiting")


class Table:
    """Shows the cells of a sweep: on a terminal as a table that is kept up to date, elsewhere a line per event.

    Args:
        jobs: the cells in their order.
        ended: the outcomes of those that had ended before.
        client: of MLflow.
        score: metric that is shown.
        file: to write to; a terminal or not.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        ended: Mapping[str, Outcome],
        client: Any,
        score: str,
        file: TextIO | None = None,
    ) -> None:
        self.jobs = list(jobs)
        self.outcomes = dict(ended)
        self.client = client
        self.score = score
        self.file = file or sys.stdout
        self.live = self.file.isatty()
        self.began = time.time()
        self._clock = time.monotonic()
        self._before = len(self.outcomes)
        self._scores: dict[str, float] = {}
        self._next = self._next_scores = 0.0
        self._lines = 0
        self._said = {job.cell.name: self.state(job)[0] for job in self.jobs}

    def update(self, outcomes: Mapping[str, Outcome]) -> None:
        """Takes the outcomes so far, and shows what is new every two seconds."""
        self.outcomes |= outcomes
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _REFRESH_SECONDS
        if now >= self._next_scores:
            self._next_scores = now + _SCORE_SECONDS
            self._read_scores()
        self._show()

    def close(self, outcomes: Mapping[str, Outcome]) -> None:
        """Shows how it ended."""
        self._next = self._next_scores = 0.0
        self.update(outcomes)
        if not self.live:
            print("\n".join(self.render()), file=self.file, flush=True)

    # What is known ------------------------------------------------------------------------------------------------

    def _read_scores(self) -> None:
        """The mean over the seeds, from the runs of the cells."""
        jobs = {job.cell.name: job for job in self.jobs}
        first = next(iter(jobs.values()), None)
        if first is None:
            return
        from mlflow.exceptions import MlflowException

        group, _, name = self.score.rpartition("/")
        # eval/return_mean: seeds/return_mean; that of eval_clean/return_mean is not logged
        shared = f"seeds/{name.removesuffix('_mean')}_mean" if group == "eval" else ""
        try:
            experiment = self.client.get_experiment_by_name(first.cell.suite)
            runs = all_runs(self.client, [experiment.experiment_id], f"tags.`{PARENT_TAG}` = '{first.parent}'")
        except MlflowException:
            return  # the next time
        found: dict[str, list[tuple[float, int]]] = {}  # a cell some of whose seeds were trained again has several runs
        for run in runs:
            metrics, tags = run.data.metrics, run.data.tags
            value = metrics.get(shared, metrics.get(self.score))
            if value is not None and tags.get(SUPERSEDED_TAG) != "true" and tags.get("cell") in jobs:
                seeds = len(parse_seeds(tags["seeds"])) if "seeds" in tags else 1
                found.setdefault(tags["cell"], []).append((value, seeds))
        for cell, own in found.items():
            self._scores[cell] = sum(value * seeds for value, seeds in own) / sum(seeds for _, seeds in own)

    def state(self, job: Job) -> tuple[str, str]:
        """State of a cell and what there is to say about it."""
        outcome = self.outcomes.get(job.cell.name)
        if outcome is not None:
            return outcome.state, outcome.detail
        try:
            if job.log.stat().st_mtime < self.began:
                return "waiting", ""
        except OSError:
            return "waiting", ""
        for line in reversed(tail(job.log)):
            match = _STEP.match(line)
            if match:
                eta = f", {match[3]} to go" if match[3] else ""
                return "running", f"step {match[1]} of {match[2]}{eta}"
            if line.startswith(MARK):
                break
        return "running", "starting"

    def _left(self) -> str:
        done = len(self.outcomes) - self._before
        rest = len(self.jobs) - len(self.outcomes)
        if not done or not rest:
            return ""
        return f"; about {timedelta(seconds=round((time.monotonic() - self._clock) / done * rest))} to go"

    def render(self, height: int | None = None) -> list[str]:
        """The table, of no more than ``height`` lines."""
        rows = [(job.cell.name, *self.state(job)) for job in self.jobs]
        counts = {state: sum(row[1] == state for row in rows) for state in _ORDER}
        summary = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
        hidden = 0
        if height is not None and len(rows) > height - 3:
            room = max(1, height - 4)
            kept = sorted(range(len(rows)), key=lambda i: _ORDER.index(rows[i][1]))[:room]
            hidden = len(rows) - len(kept)
            rows = [rows[i] for i in sorted(kept)]
        width = max([len(row[0]) for row in rows] + [4])
        lines = [f"{'cell':<{width}}  state     {self.score:>22}"]
        for name, state, detail in rows:
            score = f"{self._scores[name]:,.3f}" if name in self._scores else ""
            lines.append(f"{name:<{width}}  {state:<8}  {score:>22}  {detail}".rstrip())
        if hidden:
            lines.append(f"... and {hidden} more")
        lines.append(f"{len(self.jobs)} cells: {summary}{self._left()}")
        return lines

    def _show(self) -> None:
        if self.live:
            size = shutil.get_terminal_size()
            lines = [line[: size.columns - 1] for line in self.render(size.lines)]
            up = f"\x1b[{self._lines}A" if self._lines else ""
            self.file.write(up + "".join(f"\x1b[2K{line}\n" for line in lines) + "\x1b[J")
            self.file.flush()
            self._lines = len(lines)
            return
        for job in self.jobs:
            state, detail = self.state(job)
            if state != self._said[job.cell.name]:
                self._said[job.cell.name] = state
                told = f": {detail}" if detail and state != "running" else ""
                print(f"{time.strftime('%H:%M:%S')} {job.cell.name} {state}{told}", file=self.file, flush=True)
