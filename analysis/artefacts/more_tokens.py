"""The comparisons that depend on the budget, at that of the study and at a larger one."""

from __future__ import annotations

from itertools import chain

import pandas as pd

from analysis.artefacts import figure5_decoding_block_size
from analysis.evidence.compare import (
    accuracy_effect,
    at_budgets,
    budgets,
    by_point,
    final_evaluation,
    scalar_effect,
    sweep_evaluation,
)
from analysis.evidence.contrasts import LEVELS, sweet_spot
from analysis.evidence.effect import Effect
from analysis.pages.claims import effect_text
from analysis.pages.drift import KINDS, drift_per_doubling
from analysis.pages.exhibits import Exhibit, Table, headings
from analysis.tables.results import Results

PLACE = 235
TITLE = "Beyond the paper: at a larger budget"
TOPIC = "training"
SWEEPS = ("more_tokens", "figure3_block_size", "table5_ladder")
MORE, BLOCKS, LADDER = SWEEPS
CAPTION = (
    "Each comparison as its claim makes it, over the training blocks that were trained for both budgets, with 95 % "
    "intervals; above 0 it is as in the paper."
)


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = at_budgets(final_evaluation(of_blocks(results, "evaluations"))).sort_values(["block_size", "tokens"])
    measures = headings("accuracy", "nfe", "bits_per_byte")
    table = by_point(rows, measures, ("block_size", "tokens")).rename(columns={"block_size": "training block"})
    caption = "At one token per step, decoded with the training block."
    return [
        Table(comparisons(results), CAPTION),
        Table(table, caption, {"bits/byte": 3, "tokens": 0}),
    ]


def of_blocks(results: Results, table: str) -> pd.DataFrame:
    """Rows of a table for the runs at both budgets, restricted to training blocks that both have."""
    more, base = results.of(table, MORE), results.of(table, BLOCKS)
    shared = set(more["block_size"]) & set(base["block_size"])
    rows = pd.concat([more, base])
    return rows[rows["block_size"].isin(shared)]


def comparisons(results: Results) -> pd.DataFrame:
    """One row per comparison, one column per budget."""
    effects = chain.from_iterable(c(results) for c in BY_BUDGET.values())
    frame = pd.DataFrame([{"comparison": e.what, "tokens": t, "effect": with_seeds(e)} for t, e in effects if e.seeds])
    if frame.empty:
        return frame
    wide = frame.pivot(index="comparison", columns="tokens", values="effect").reindex(frame["comparison"].unique())
    return wide.rename(columns=lambda tokens: f"{tokens:,.0f} tokens").fillna("–").reset_index()


def with_seeds(effect: Effect) -> str:
    """An effect with its number of seeds."""
    return f"{effect_text(effect)}; {effect.seeds} seed{'s' if effect.seeds > 1 else ''}"


def by_budget(rows: pd.DataFrame) -> list[tuple[float, pd.DataFrame]]:
    """(training tokens, rows) of every budget."""
    return list(rows.groupby(budgets(rows))) if len(rows) else []


def training_blocks(results: Results) -> list[tuple[float, Effect]]:
    """The quadratic contrast of accuracy over the training block, from the claim of a best block in between."""
    return [
        (tokens, sweet_spot(rows, "block_size", "training block", MORE)[0])
        for tokens, rows in by_budget(final_evaluation(of_blocks(results, "evaluations")))
    ]


def positional(results: Results) -> list[tuple[float, Effect]]:
    """Positional masking, the ladder's last two rungs, against uniform masking with the same block."""
    ladder = final_evaluation(results.of("evaluations", LADDER))
    rungs = ladder[ladder["masking_name"].astype(str).str.startswith("position")]
    uniform = final_evaluation(of_blocks(results, "evaluations"))
    effects = []
    for tokens, rows in by_budget(rungs):
        same = uniform[(budgets(uniform) == tokens) & uniform["block_size"].isin(rows["block_size"])]
        effects.append((tokens, accuracy_effect(rows, same, "half-life 0.1 − uniform, TPF 1")))
    return effects


def decoding_blocks(results: Results) -> list[tuple[float, Effect]]:
    """The slope of accuracy over the decoding block, at few forwards per token of the answer."""
    of_sweeps = [of_blocks(results, "evaluations"), results.of("evaluations", BLOCKS)]
    rows = pd.concat(of_sweeps) if len(of_sweeps[0]) else of_sweeps[0]
    rows = sweep_evaluation(rows, "forwards").drop_duplicates(["run", "evaluation", "file", "nfe", "eval_block_size"])
    return [
        (tokens, figure5_decoding_block_size.per_doubling(at_budget, results, BLOCKS, LEVELS[-1]))
        for tokens, at_budget in by_budget(rows)
    ]


def drift(results: Results) -> list[tuple[float, Effect]]:
    """The slope of the relative change of the weights over the training block."""
    effects = []
    for tokens, rows in by_budget(of_blocks(results, "drift")):
        slopes = drift_per_doubling(rows, list(KINDS))
        what = "change of the weights per doubling of the training block"
        effects.append((tokens, scalar_effect(what, slopes, rows["run"], "%", 1)))
    return effects


# Claim → its comparison at every budget.
BY_BUDGET = {
    "block_size_sweet_spot": training_blocks,
    "positional_masking_helps": positional,
    "large_eval_blocks_at_low_nfe": decoding_blocks,
    "drift_grows_with_block_size": drift,
}
