"""Weight drift by training block size."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.evidence.compare import scalar_effect, slope_by_seed
from analysis.evidence.stats import Effect
from analysis.pages.drift import KINDS, drift_panels, drift_table
from analysis.pages.exhibits import Exhibit, Plot, Table
from analysis.tables.results import Results

PLACE = 40
TITLE = "Figure 4: weight drift by training block size"
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
        Table(drift_table(drift, "line"), "Mean over the layers; in small: interval over seeds.", 4),
    ]


def drift_grows_with_block_size(results: Results, paper: dict) -> list[Effect]:
    """The slope of the log relative weight change over log2 of the training block, per kind of weight."""
    drift = results.of("drift", SWEEP)
    effects = []
    for kind, name in KINDS.items():
        of_kind = drift[drift["kind"] == kind] if len(drift) else drift
        slopes = per_doubling(of_kind)
        what = f"log of the change per doubling of the block, {name}"
        effects.append(scalar_effect(what, slopes, of_kind["run"], "{:+.3f}", "grows", f"{SWEEP} at two block sizes"))
    return effects


def per_doubling(drift: pd.DataFrame) -> pd.Series:
    """Seed → slope of the log relative weight change over log2 of the training block."""
    logs = drift.assign(log=np.log(drift["relative"].astype(float)))
    return slope_by_seed(logs, "block_size", "log", np.log2)
