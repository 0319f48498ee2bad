"""How far conversion moves the weights of each layer, per attention pattern."""

from __future__ import annotations

from analysis.evidence.stats import Effect
from analysis.pages.drift import drift_effect, drift_panels, drift_table
from analysis.pages.exhibits import Exhibit, Plot, Table
from analysis.tables.results import Results

PLACE = 20
TITLE = "Figure 2e: weight drift by attention pattern"
SWEEPS = ("table1_attention",)
SWEEP = SWEEPS[0]
FULL = ("c", "b", "d", "f", "g")  # full training at one budget, starting with the pattern that drifts most in the paper


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    drift = results.of("drift", SWEEP)
    drift = drift[drift["point"].isin(FULL)] if len(drift) else drift
    drift = drift.assign(line=drift["point"] + "  " + drift["label"])
    caption = (
        "‖ΔW‖ / ‖W‖ per layer, averaged over its weights; lines: mean over seeds, bands: their range. The paper plots "
        "an average difference that it does not define; the table has two more measures."
    )
    return [
        Plot("figure2e_drift", drift_panels(drift, "line"), caption, "Weight change per layer for attention and FFN"),
        Table(drift_table(drift, "line"), "Mean over the layers; in small: interval over seeds.", 4),
    ]


def block_drifts_less(results: Results, paper: dict) -> list[Effect]:
    drift = results.of("drift", SWEEP)
    pairs = ("c", "g", "attention"), ("c", "g", "ffn"), ("d", "f", "ffn")
    return [drift_effect(drift, SWEEP, more, less, kind) for more, less, kind in pairs]
