"""How far conversion moves the weights of each layer, per attention pattern, by the optimizer of the study and by the
paper's, AdamW."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.effect import Effect
from analysis.pages.drift import KINDS, drift_effect, drift_panels, drift_table
from analysis.pages.exhibits import Exhibit, Plot, Table
from analysis.tables.results import Results

PLACE = 20
TITLE = "Figure 2e: weight drift by attention pattern"
TOPIC = "drift"
SWEEPS = ("table1_attention", "figure2e_adamw")
SWEEP, ADAMW = SWEEPS
FULL = ("c", "b", "d", "f", "g")  # full training at one budget, starting with the pattern that drifts most in the paper

BIDIR_BLOCK = (("c", "g"), ("b", "f"))  # without the token shift, and with it


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    drift, adamw = (by_pattern(results, sweep) for sweep in SWEEPS)
    caption = (
        "‖ΔW‖ / ‖W‖ per layer, averaged over its weights; lines: mean over seeds, bands: their range. The paper plots "
        "an average difference that it does not define; the table has two more measures."
    )
    return [
        Plot("figure2e_drift", drift_panels(drift, "line"), caption, "Weight change per layer for attention and FFN"),
        Table(drift_table(drift, "line"), "Mean over the layers.", 4),
        Table(drift_table(adamw, "line"), "Mean over the layers, with AdamW.", 4),
    ]


def by_pattern(results: Results, sweep: str) -> pd.DataFrame:
    """The drift of the points that are trained in full at one budget."""
    drift = results.of("drift", sweep)
    drift = drift[drift["point"].isin(FULL)] if len(drift) else drift
    return drift.assign(line=drift["point"] + "  " + drift["label"])


def block_drifts_less(results: Results, paper: dict) -> list[Effect]:
    """The primary comparison takes both pairs of patterns, without and with the token shift, and both kinds of weights;
    the others are its parts, and what noisy context changes in FFN layers."""
    parts = [(pair, kind) for pair in BIDIR_BLOCK for kind in KINDS]
    return [
        drift_effect(results, SWEEP, BIDIR_BLOCK, list(KINDS), "both", "bidirectional − block-wise, c − g and b − f"),
        *(
            drift_effect(
                results, SWEEP, [pair], [kind], f"{'-'.join(pair)} {kind}", f"{' − '.join(pair)}, {KINDS[kind]}"
            )
            for pair, kind in parts
        ),
        drift_effect(results, SWEEP, [("d", "f")], ["ffn"], "d-f ffn", "noisy − clean context, d − f, FFN"),
        drift_effect(results, ADAMW, BIDIR_BLOCK, list(KINDS), "adamw", "AdamW: c − g and b − f", has_control=False),
    ]
