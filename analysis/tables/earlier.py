"""Earlier results: runs measured on another machine, or whose folders were deleted. A study skips what they hold and
adds to them, so several machines can share a long study through one results file."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import pandas as pd

from analysis.plan.sweep import DIVERGED, Evaluation, Point
from analysis.tables.measurements import Rows
from analysis.tables.results import FINISHED, IDS, MEASURED_FOR, Results
from dlm.runs.digest import digest

MEASURED = ("evaluations", "positions", "steps", "scores")  # tables with rows measured for a sweep
OF_RUNS = ("runs", "drift", "curves")


class Earlier:
    """Looks up points in earlier `results`. A run evaluated with other settings than its point's counts as absent, and
    so does a measurement whose settings have changed."""

    def __init__(self, results: Results):
        self.results = results

    @classmethod
    def none(cls) -> Earlier:
        """Results without any run."""
        return cls(Results.of_rows({}))

    @cached_property
    def evaluated(self) -> dict[str, str]:
        """Finished run → digest of its evaluation settings."""
        runs = self.results.runs
        return dict(zip(runs["run"], runs["evaluated"], strict=True))

    @cached_property
    def diverged(self) -> set[str]:
        """The ids of diverged runs."""
        points = self.results.points
        return set(points.loc[points["state"] == DIVERGED, "run"])

    @cached_property
    def measured(self) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """(run, measurement file) → the (sweep, evaluation name) pairs it was measured for."""
        names_of: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for table in (getattr(self.results, name)[list(IDS)].dropna() for name in MEASURED):
            for run, sweep, name, file in table.drop_duplicates().itertuples(index=False):
                names_of.setdefault((run, file), []).append((sweep, name))
        return names_of

    def state(self, point: Point) -> str | None:
        """`finished` or `diverged`; None if these results hold no usable evaluation of the point."""
        if point.run in self.diverged:
            return DIVERGED
        return FINISHED if self.evaluated.get(point.run) == digest(point.evaluated_with) else None

    def lacking(self, point: Point) -> Point | None:
        """The point with only its missing evaluations; None if nothing is left to do."""
        state = self.state(point)
        missing = tuple(e for e in point.evaluations if (point.run, e.file) not in self.measured)
        if state == DIVERGED or (state == FINISHED and not missing):
            return None
        return replace(point, evaluations=missing)

    def lost(self, results: Results) -> list[str]:
        """The ids of runs that `results` lacks, although it should extend these."""
        return sorted(set(self.results.runs["run"]) - set(results.runs["run"]))

    def tables_of_run(self, run: str) -> Rows:
        """The rows of a run that belong to no sweep."""
        tables = {name: records(getattr(self.results, name), {"run": run}) for name in OF_RUNS}
        final = {"run": run} | dict.fromkeys(MEASURED_FOR, "")  # the evaluation at the end of training
        return tables | {"evaluations": records(self.results.evaluations, final)}

    def tables_of(self, sweep: str, point: Point, evaluation: Evaluation) -> Rows:
        """The rows of an evaluation, without the columns of `IDS`; empty if it was not measured.

        Prefers rows measured for this sweep under this name, else takes equal ones measured for another.
        """
        names = self.measured.get((point.run, evaluation.file), [])
        if not names:
            return {}
        source = (sweep, evaluation.name) if (sweep, evaluation.name) in names else names[0]
        ids = {"run": point.run, **dict(zip(MEASURED_FOR, source, strict=True)), "file": evaluation.file}
        tables = {name: records(getattr(self.results, name), ids) for name in MEASURED}
        return {name: [{k: v for k, v in row.items() if k not in ids} for row in t] for name, t in tables.items()}


def records(table: pd.DataFrame, equal_to: dict[str, str]) -> list[dict[str, Any]]:
    """The rows whose columns have the values of `equal_to`, as dicts."""
    if table.empty:
        return []
    matches = table[(table[list(equal_to)] == pd.Series(equal_to)).all(axis=1)]
    return matches.to_dict("records")
