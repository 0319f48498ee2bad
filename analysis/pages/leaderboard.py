"""The leaderboard: every row's place, what it keeps at fixed forwards, and the seeds that others have tried."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.evidence.compare import ONE_TOKEN, by_point
from analysis.evidence.frontier import BySeed, behind, by_seed, frontier, over, reaches, with_forwards
from analysis.evidence.kept import KEPT
from analysis.evidence.stats import Estimate, estimate
from analysis.pages.exhibits import Exhibit, Plot, Table
from analysis.pages.plots import trade_off
from analysis.tables.results import DLM, Results

FORWARDS = (1.0, 0.5, 0.25)  # per token, at which what is kept is shown
ORACLE = "oracle"  # a ceiling, which nobody can decode with
DIGITS = {"TFLOP": 2, "rank": 0}
SAID = (
    "Rows at equal training FLOPs. Area: the mean over 0 to 1 forwards per token of what the frontier of a row's "
    "decoding settings keeps of its parent's accuracy, in percent; the AR parent has 0. Kept at 1, 0.5 and 0.25 "
    "forwards per token: the frontier there; – where no setting is as cheap. Behind the first: the difference of "
    "areas, paired by seed and item; where its interval contains 0, the order of the two is not decided. Other seeds: "
    "chosen by whoever verified the row. Intervals: 95%, over seeds and items."
)


@dataclass(frozen=True)
class Standing:
    """A row: its `area` and what it keeps `at` each of `FORWARDS`; without runs it has neither. `values` are the areas
    by seed and item, `curve` the rows of its frontier."""

    sweep: str
    point: str
    label: str
    area: Estimate | None = None
    at: dict[float, Estimate | None] = field(default_factory=dict)
    flops: Estimate | None = None
    values: BySeed = field(default_factory=dict)
    curve: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def areas(self) -> dict[int, float]:
        """Seed → area."""
        return {seed: float(np.mean(items)) for seed, items in self.values.items()}


def standings(results: Results) -> list[Standing]:
    """The rows by falling area, those without runs last."""
    rows = decoded(results)
    names = results.points.drop_duplicates(["sweep", "point"])
    standing_rows = [
        standing(sweep, point, label, rows[(rows["sweep"] == sweep) & (rows["point"] == point)])
        for sweep, point, label in names[["sweep", "point", "label"]].itertuples(index=False)
    ]
    return sorted(standing_rows, key=lambda row: -row.area.mean if row.area else np.inf)


def decoded(results: Results) -> pd.DataFrame:
    """The dLMs' rows at every decoding setting that all seeds have: those of the sweep, and one token per step."""
    sweeps = list(results.points["sweep"].unique())
    rows = results.of("evaluations", sweeps)
    known = rows[(rows["model"] == DLM) & ((rows["evaluation"] != "") | (rows["setting"] == ONE_TOKEN))]
    return with_forwards(results, known[known["evaluation"] != ORACLE])


def standing(sweep: str, point: str, label: str, rows: pd.DataFrame) -> Standing:
    """The standing of one row by its decoding settings."""
    label = label.removeprefix("recipe ")
    curve = frontier(rows) if len(rows) else rows
    if curve.empty:
        return Standing(sweep, point, label)
    values = by_seed(curve)
    at = {level: over(by_seed(curve, [level]), curve) if reaches(curve, level) else None for level in FORWARDS}
    flops = estimate(curve.drop_duplicates("run"), "train_flops", 1e-12)
    return Standing(sweep, point, label, over(values, curve), at, flops, values, curve)


def exhibits(results: Results, verified: Results) -> list[Exhibit]:
    """The table of all rows, and the frontiers of those with runs."""
    rows, others = standings(results), {(s.sweep, s.point): s for s in standings(verified)}
    panels = (trade_off(points(rows), "forwards", "best", "", "forwards per token", KEPT),) if rows[0].area else ()
    return [
        Table(board(rows, others), SAID, DIGITS),
        Plot(
            "leaderboard",
            panels,
            "The frontier of every row, of the first three by name; bars: 95% intervals.",
            "What is kept over forwards",
        ),
    ]


def board(rows: list[Standing], others: dict[tuple[str, str], Standing]) -> pd.DataFrame:
    """One row per standing; `others` are those of the seeds that were chosen by others."""
    table = []
    for rank, row in enumerate(rows, 1):
        other = others.get((row.sweep, row.point))
        table.append(
            {
                "rank": rank if row.area else None,
                "row": row.label,
                "area": row.area,
                "behind the first": behind(row.values, rows[0].values, row.curve) if row.area and rank > 1 else None,
                **{f"kept % at {level:g}": row.at.get(level) for level in FORWARDS},
                "TFLOP": row.flops,
                "seeds": ", ".join(map(str, row.values)) or "no runs",
                "other seeds": ", ".join(f"{s}: {a:.1f}" for s, a in other.areas.items()) if other else "",
            }
        )
    return pd.DataFrame(table)


def points(rows: list[Standing]) -> pd.DataFrame:
    """The frontiers' points for the figure, the first three rows named."""
    curves = [
        row.curve.assign(name=row.label, kept=100 * row.curve["kept"].astype(float), best=rank < 3, baseline=False)
        for rank, row in enumerate(rows)
        if row.area
    ]
    keys = ("name", "evaluation", "setting", "best", "baseline")
    return by_point(pd.concat(curves), {"forwards": "forwards", "kept": "accuracy %"}, keys)
