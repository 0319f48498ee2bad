"""What more training tokens bring: likelihood tasks, and accuracy against forwards."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.evidence.compare import (
    at_shared_cost,
    by_point,
    final_evaluation,
    scalar_effect,
    slope_by_seed,
    sweep_evaluation,
)
from analysis.evidence.stats import Effect
from analysis.pages.exhibits import CELLS, Exhibit, Plot, Table, headings
from analysis.pages.plots import frontier, lines
from analysis.tables.results import Results

PLACE = 90
TITLE = "Figure 8: training tokens"
SWEEPS = ("figure8_tokens",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = by_budget(sweep_evaluation(results.of("evaluations", SWEEP), "forwards"))
    one = by_budget(final_evaluation(results.of("evaluations", SWEEP)))
    panels = (
        lines(one.assign(line="cloze"), "tokens", "cloze", "line", "(a)", "training tokens", "cloze, %", 100, log=True),
        lines(
            one.assign(line="bound"), "tokens", "bits_per_byte", "line", "(a)", "training tokens", "bits/byte", log=True
        ),
        frontier(rows, "nfe", "budget", "threshold", "(b–d)", "forwards per answer (NFE)"),
    )
    likelihoods = by_point(one, headings("accuracy", "cloze", "bits_per_byte"), ("budget",))
    table = by_point(rows, headings("accuracy", "tpf", "nfe"), ("budget", "threshold"))
    caption = (
        "(a) Likelihood of held-out prose over training tokens, mean and range over seeds; chance of the cloze is "
        "25 %. (b–d) Accuracy against forwards, one line per budget through its decoding settings."
    )
    return [
        Plot("figure8_tokens", panels, caption, "Likelihood and accuracy by training tokens"),
        Table(likelihoods, f"At one token per step. {CELLS}", {"bits/byte": 3}),
        Table(table, CELLS, {"TPF": 2, "threshold": 2}),
    ]


def by_budget(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows sorted by training tokens, with these as the text `budget`."""
    rows = rows.sort_values(["tokens", "seed"])
    return rows.assign(budget=[f"{v / 1e6:.3g} M tokens" for v in rows["tokens"]])


def training_improves_parallelism(results: Results, paper: dict) -> list[Effect]:
    """Slopes per doubling of the training tokens: of the cloze, and of accuracy at the fewest forwards all budgets
    reach."""
    rows = results.of("evaluations", SWEEP)
    one, fast = final_evaluation(rows), sweep_evaluation(rows, "forwards")
    level, at_level = at_shared_cost(fast, "nfe", "tokens", 0)
    at = f"at {level:.1f} forwards" if len(at_level) else "at few forwards"
    missing, points = f"{SWEEP} at two budgets", "{:+.1f} points"
    return [
        scalar_effect(what, 100 * slope_by_seed(curve, "tokens", measure, np.log2), runs, points, "grows", missing)
        for what, curve, measure, runs in (
            ("cloze per doubling of the tokens", one, "cloze", one["run"]),
            (f"accuracy {at} per doubling of the tokens", at_level, "accuracy", fast["run"]),
        )
    ]
