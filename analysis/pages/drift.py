"""Weight drift per layer as panels, a table and effects, shared by the artefacts on drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.evidence.compare import by_point, scalar_effect, slope_by_seed
from analysis.evidence.effect import Effect
from analysis.pages.plots import lines
from analysis.tables.results import Results

CONTROL, SAME_TOKENS = "ar_control", 0.25  # the point of AR training alone, and how near its tokens must be
KINDS = {"attention": "attention", "ffn": "FFN"}
MEASURES = {"relative": "‖ΔW‖ / ‖W‖", "mean_abs": "mean |ΔW|", "one_minus_cos": "1 − cos"}


def drift_panels(drift: pd.DataFrame, by: str, order: Sequence[Any] | None = None) -> tuple[Figure, ...]:
    """One panel for attention and one for FFN: relative change over the layers, one line per value of `by`."""
    inside = drift[drift["layer"] >= 0] if len(drift) else drift
    return tuple(
        lines(inside[inside["kind"] == kind], "layer", "relative", by, name, "layer", MEASURES["relative"], order=order)
        for kind, name in KINDS.items()
    )


def drift_table(drift: pd.DataFrame, by: str) -> pd.DataFrame:
    """All measures per value of `by` and kind of weight, averaged over the layers of a run."""
    inside = drift[drift["kind"].isin(list(KINDS))] if len(drift) else drift
    inside = inside.assign(kind=inside["kind"].map(KINDS))
    per_run = inside.groupby([by, "kind", "run", "seed"], as_index=False, sort=False)[list(MEASURES)].mean()
    return by_point(per_run, MEASURES, (by, "kind")).rename(columns={by: ""})


def mean_change(drift: pd.DataFrame, kind: str) -> pd.Series:
    """Seed → the relative change of the weights of a kind, averaged over layers."""
    of_kind = drift[drift["kind"] == kind]
    return of_kind["relative"].astype(float).groupby(of_kind["seed"]).mean()


def control_change(results: Results, tokens: float) -> dict[str, float]:
    """Kind → the mean relative change of the weights by about as many tokens of AR training, in which the optimizer
    moves them without any conversion; {} without such a run."""
    controls = results.points.loc[results.points["point"] == CONTROL, "run"]
    runs = results.runs[results.runs["run"].isin(controls)]
    apart = (runs["tokens"].astype(float) / tokens - 1).abs()
    # Seeds of one budget that is counted in examples differ by about a percent of their tokens.
    runs = runs[apart <= apart[apart < SAME_TOKENS].min() + 0.05]
    drift = results.drift[results.drift["run"].isin(runs["run"])]
    return {kind: float(group["relative"].astype(float).mean()) for kind, group in drift.groupby("kind")}


def drift_effect(
    results: Results,
    sweep: str,
    pairs: Sequence[tuple[str, str]],
    kinds: Sequence[str],
    id: str,
    what: str,
    has_control: bool = True,
) -> Effect:
    """How much further the first point of each pair drifts than the second, averaged over the pairs and kinds of
    weights, in percent of the AR control's change; without a control, of the second point's. `has_control`: the control
    was trained as these points were."""
    drift = results.of("drift", sweep)
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    sides = {name: drift[drift["point"] == name] if len(drift) else drift for name in names}
    missing = ", ".join(f"{sweep} {name}" for name, side in sides.items() if side.empty)
    facts = {"id": id, "sweep": sweep, "in_paper": "further"}
    if missing:
        return Effect(what, missing=(missing,), unit="%", **facts)
    control = control_change(results, float(sides[names[0]]["tokens"].iloc[0])) if has_control else {}
    differences = []
    for (more, less), kind in product(pairs, kinds):
        first, second = (mean_change(sides[name], kind) for name in (more, less))
        differences.append(100 * (first - second) / control.get(kind, second.mean()))
    by_seed = pd.concat(differences, axis=1).dropna().mean(axis=1)
    runs = pd.concat(list(sides.values()))["run"].tolist()
    return scalar_effect(f"{what}, in % of {reference(control)}", by_seed, runs, "%", 1, **facts)


def drift_per_doubling(
    drift: pd.DataFrame, kinds: Sequence[str], control: Mapping[str, float] = MappingProxyType({})
) -> pd.Series:
    """Seed → slope of the relative weight change over log2 of the training block, in percent of the control's change
    (without one, of the mean over all blocks), averaged over kinds of weights."""
    slopes = []
    for kind in kinds:
        of_kind = drift[drift["kind"] == kind]
        share = 100 * of_kind["relative"].astype(float) / control.get(kind, of_kind["relative"].mean())
        slopes.append(slope_by_seed(of_kind.assign(share=share), "block_size", "share", np.log2))
    return pd.concat(slopes, axis=1).dropna().mean(axis=1)


def reference(control: Mapping[str, float]) -> str:
    """What changes are in percent of, as text."""
    return "what AR training changes" if control else "the change itself"
