"""What more training tokens bring: likelihood tasks, and accuracy against forwards."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.evidence.compare import (
    at_budgets,
    budgets,
    by_point,
    final_evaluation,
    parent_accuracy,
    scalar_effect,
    slope_by_seed,
    sweep_evaluation,
)
from analysis.evidence.contrasts import LEVELS, at_forwards, in_every_seed, slope, trend_effect
from analysis.evidence.effect import TREND, Effect
from analysis.evidence.stats import recorded_half_width
from analysis.pages.exhibits import Exhibit, Plot, Table, headings
from analysis.pages.plots import frontier, lines
from analysis.tables.results import Results
from dlm.evaluation.interval import Z95

PLACE = 90
TITLE = "Figure 8: training tokens"
TOPIC = "training"
SWEEPS = ("figure8_tokens",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = by_budget(sweep_evaluation(results.of("evaluations", SWEEP), "forwards"))
    one = by_budget(final_evaluation(results.of("evaluations", SWEEP)))
    panels = (
        lines(one.assign(line="dLM"), "tokens", "cloze", "line", "cloze", "training tokens", "cloze, %", 100, log=True),
        lines(
            one.assign(line="dLM"),
            "tokens",
            "bits_per_byte",
            "line",
            "held-out prose",
            "training tokens",
            "bits/byte",
            log=True,
        ),
        frontier(rows, "nfe", "budget", "threshold", "accuracy by forwards", "forwards per answer (NFE)"),
    )
    likelihoods = by_point(one, headings("accuracy", "cloze", "bits_per_byte"), ("budget",))
    table = by_point(rows, headings("accuracy", "tpf", "nfe"), ("budget", "threshold"))
    caption = (
        "The paper's panel (a): likelihood over training tokens, range over seeds; chance of the cloze is 25%. "
        "Its panels (b–d): accuracy against forwards, one line per budget through its decoding settings."
    )
    return [
        Plot("figure8_tokens", panels, caption, "Likelihood and accuracy by training tokens"),
        Table(likelihoods, "At one token per step.", {"bits/byte": 3}),
        Table(table, "Every budget and threshold.", {"TPF": 2, "threshold": 2}, aside=True),
    ]


def by_budget(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows sorted by training tokens, with these as the text `budget`."""
    rows = at_budgets(rows).sort_values(["tokens", "seed"])
    return rows.assign(budget=[f"{v / 1e6:.3g}M tokens" for v in rows["tokens"]])


def training_improves_parallelism(results: Results, paper: dict) -> list[Effect]:
    """Trends per doubling of the training tokens: of the bound on prose, of accuracy at few forwards, of the cloze."""
    rows = results.of("evaluations", SWEEP)
    rows = rows.assign(tokens=budgets(rows)) if len(rows) else rows
    one, fast = final_evaluation(rows), sweep_evaluation(rows, "forwards")
    facts = {"missing": f"{SWEEP} at two budgets", "sweep": SWEEP, "in_paper": "grows", "expectation": TREND}
    bits = -slope_by_seed(one, "tokens", "bits_per_byte", np.log2)
    effects = [scalar_effect("bits per byte saved per doubling", bits, one["run"], "bits/byte", id="bits", **facts)]
    of_accuracy = facts | {"missing": [f"{SWEEP} at two budgets"], "parent": parent_accuracy(results, SWEEP)}
    for level in LEVELS:
        reached = in_every_seed(at_forwards(fast, results, SWEEP, level), "tokens")
        what = f"accuracy at {level:g} forwards per token, per doubling"
        short = len(fast) and reached["tokens"].nunique() < 2
        obstacle = f"fewer than two budgets reach {level:g} forwards per token of the answer" if short else ""
        effects.append(trend_effect(reached, "tokens", what, id=f"at {level:g}", obstacle=obstacle, **of_accuracy))
    cloze = 100 * slope_by_seed(one, "tokens", "cloze", np.log2)
    noise = cloze_error(one)
    effects.append(
        scalar_effect("cloze per doubling", cloze, one["run"], "points", 1, id="cloze", item_error=noise, **facts)
    )
    return effects


def cloze_error(rows: pd.DataFrame) -> float:
    """The standard error of the trend of the cloze in points owing to its items, as if every budget had its own; 0
    where no interval is recorded."""
    tokens = rows["tokens"].astype(float).unique() if len(rows) else []
    if len(tokens) < 2:
        return 0.0
    return 100 * recorded_half_width(rows, "cloze") / Z95 * float(np.linalg.norm(slope(np.log2(tokens))))
