"""Results whose runs are not in the runs folder: made on another machine, or removed since. A study adds to them and
makes nothing of them again, so that one of many hours can be done in pieces, by machines that share a results file."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import pandas as pd

from analysis.plan.sweep import DIVERGED, Evaluation, Point
from analysis.tables.measurements import Rows
from analysis.tables.results import FINISHED, IDS, MEASURED_FOR, Results
from dlm.runs.digest import digest

MEASURED = ("evaluations", "positions", "steps", "scores")  # tables with rows that a sweep asked for
OF_RUNS = ("runs", "drift", "curves")


class Earlier:
    """What results know of points. Nothing is known of a run that was evaluated with other settings than its point has
    now, nor of a measurement whose settings have changed."""

    def __init__(self, results: Results):
        self.results = results

    @classmethod
    def none(cls) -> Earlier:
        return cls(Results.of_rows({}))

    @cached_property
    def evaluated(self) -> dict[str, str]:
        """Finished run → how it was evaluated."""
        runs = self.results.runs
        return dict(zip(runs["run"], runs["evaluated"], strict=True))

    @cached_property
    def diverged(self) -> set[str]:
        points = self.results.points
        return set(points.loc[points["state"] == DIVERGED, "run"])

    @cached_property
    def measured(self) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """(run, file of a measurement) → the sweeps and the names in them for which it was measured."""
        found: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for table in (getattr(self.results, name)[list(IDS)].dropna() for name in MEASURED):
            for run, sweep, name, file in table.drop_duplicates().itertuples(index=False):
                found.setdefault((run, file), []).append((sweep, name))
        return found

    def state(self, point: Point) -> str | None:
        """Finished or diverged; None where nothing is known that can be used."""
        if point.run in self.diverged:
            return DIVERGED
        return FINISHED if self.evaluated.get(point.run) == digest(point.config["evaluation"]) else None

    def lacking(self, point: Point) -> Point | None:
        """The point with the evaluations that are not known; None where nothing is left to do."""
        state = self.state(point)
        left = tuple(e for e in point.evaluations if (point.run, e.file) not in self.measured)
        if state == DIVERGED or (state == FINISHED and not left):
            return None
        return replace(point, evaluations=left)

    def lost(self, results: Results) -> list[str]:
        """The runs that other results, which were to add to these, do not have."""
        return sorted(set(self.results.runs["run"]) - set(results.runs["run"]))

    def tables_of_run(self, run: str) -> Rows:
        """What every run holds."""
        made = {name: records(getattr(self.results, name), {"run": run}) for name in OF_RUNS}
        own = {"run": run} | dict.fromkeys(MEASURED_FOR, "")
        return made | {"evaluations": records(self.results.evaluations, own)}

    def tables_of(self, sweep: str, point: Point, evaluation: Evaluation) -> Rows:
        """What was measured, best under this very name; nothing where it was not. The columns that say for which sweep
        are left out."""
        names = self.measured.get((point.run, evaluation.file), [])
        if not names:
            return {}
        known = (sweep, evaluation.name) if (sweep, evaluation.name) in names else names[0]
        wanted = {"run": point.run, **dict(zip(MEASURED_FOR, known, strict=True)), "file": evaluation.file}
        tables = {name: records(getattr(self.results, name), wanted) for name in MEASURED}
        return {name: [{k: v for k, v in row.items() if k not in wanted} for row in t] for name, t in tables.items()}


def records(table: pd.DataFrame, wanted: dict[str, str]) -> list[dict[str, Any]]:
    """The rows with the `wanted` values."""
    if table.empty:
        return []
    chosen = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return chosen.to_dict("records")
