"""Weight drift by training block size."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import scalar_effect
from analysis.evidence.effect import TREND, Effect
from analysis.pages.drift import KINDS, control_change, drift_panels, drift_per_doubling, drift_table, reference
from analysis.pages.exhibits import Exhibit, Plot, Table
from analysis.tables.results import Results

PLACE = 40
TITLE = "Figure 4: weight drift by training block size"
TOPIC = "drift"
SWEEPS = ("figure3_block_size",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    drift = results.of("drift", SWEEP).sort_values("block_size")
    drift = drift.assign(line=[f"block {v:g}" for v in drift["block_size"]])
    caption = "‖ΔW‖ / ‖W‖ per layer, averaged over its weights; lines: mean over seeds, bands: their range."
    return [
        Plot(
            "figure4_drift_by_block_size",
            drift_panels(drift, "line"),
            caption,
            "Weight change per layer by training block size",
        ),
        Table(drift_table(drift, "line"), "Mean over the layers.", 4),
    ]


def drift_grows_with_block_size(results: Results, paper: dict) -> list[Effect]:
    """The slope of the relative weight change over log2 of the training block, over both kinds of weights, and of
    each."""
    drift = results.of("drift", SWEEP)
    control = control_change(results, float(drift["tokens"].iloc[0])) if len(drift) else {}
    effects = []
    for id, kinds in (("both", list(KINDS)), *((kind, [kind]) for kind in KINDS)):
        slopes = drift_per_doubling(drift, kinds, control) if len(drift) else pd.Series(dtype=float)
        names = " and ".join(KINDS[kind] for kind in kinds)
        what = f"change per doubling of the block, {names}, in % of {reference(control)}"
        facts = {"id": id, "sweep": SWEEP, "in_paper": "grows", "expectation": TREND}
        missing = f"{SWEEP} at two block sizes"
        effects.append(scalar_effect(what, slopes, drift["run"], "%", 1, missing, **facts))
    return effects
