"""Published recipes from one parent, on the same data, at the same number of tokens, block size and learning rate."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.evidence.compare import by_point, final_evaluation, parent_row, scalar_effect, sweep_evaluation
from analysis.evidence.effect import Effect
from analysis.evidence.equal_flops import (
    ANSWERS,
    AT_EQUAL_FLOPS,
    BOUNDS,
    NOT_MEASURED,
    PROSE,
    runs_at_equal_flops,
    training_curves,
    with_validation,
)
from analysis.evidence.kept import KEPT
from analysis.evidence.stats import estimate
from analysis.pages.claims import effect_text
from analysis.pages.dots import Dot, dots
from analysis.pages.exhibits import Exhibit, Plot, Table, headings
from analysis.pages.findings import coverage, decision, findings, lead_text, rank_groups, score_text
from analysis.tables.results import Results
from dlm.evaluation.generation import DEGENERATE

PLACE = 250
TITLE = "Beyond the paper: published recipes at equal tokens"
TOPIC = "recipes"
SWEEPS = ("recipes", "recipes_second_stage")
FIRST, SECOND = SWEEPS
CONTROLS = ("ar_control", "untrained")
RECIPE, CONTROL, STAGE, AR = "recipe", "control", "second stage", "AR parent"
DIGITS = {"tokens/row": 2, "bits/byte": 3, "TFLOP": 2, "tokens": 0}


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = results.of("evaluations", SWEEPS)
    one = whole_cost(with_kind(final_evaluation(rows)), results)
    parallel = with_kind(sweep_evaluation(rows, "threshold"))
    runs_text = coverage(results, SWEEPS)
    parent = parent_row(results, FIRST)["accuracy"].astype(float).mean()  # of second stages as well
    spent, said = costs(results, one)
    kept_of = one.assign(kept=one["accuracy"].astype(float) / parent)
    return [
        findings(sentences(results, one, parallel, sweep_evaluation(rows, "parent").assign(label=AR)), runs_text),
        Plot("recipes", ranked(kept_of), RANKED + canvas_note(results), "Accuracy kept of the parent's by recipe"),
        Table(recipe_table(results, one), f"At one token per step. {LEGEND}", DIGITS),
        Table(by_threshold(parallel), "By the confidence τ that commits a token.", digits(parallel), aside=True),
        Table(spent, f"Validation. {said}", COSTS),
    ]


LEGEND = (
    "Repetitive: the output ends in one piece over and over; empty: it has no tokens; endless: it has no EOS. "
    "Tokens/row: tokens for every row (token or mask) that all forwards read, prompts as well. Tokens and TFLOP of a "
    "second stage include the first. TFLOP count auxiliary losses, teachers and rollouts. Bits/byte of held-out prose: "
    "the bound of a dLM with uniform masking, which recipes that hide whole blocks never train; exact for AR."
)
COSTS = dict.fromkeys((*BOUNDS.values(), *AT_EQUAL_FLOPS.values()), 3)
COSTS |= {"examples": 0}

RANKED = "At one token per step and equal tokens; the AR control was trained further without conversion."
CANVAS = (
    " Bidirectional recipes are decoded with the whole canvas, as published, unlike rows b and c of Table 1, whose "
    "canvas ends with the block."
)


def canvas_note(results: Results) -> str:
    """That bidirectional recipes have another canvas than Table 1, if its rows have one that ends with the block."""
    return CANVAS * bool((results.of("runs", "table1_attention")["canvas"] == "block").any())


def ranked(rows: pd.DataFrame) -> tuple[Figure, ...]:
    """Every recipe and control by the accuracy it kept, the best on top."""
    order = sorted((group for _, group in rows.groupby(["kind", "label"])), key=lambda g: -g["kept"].mean())
    values = [(name(group), estimate(group, "kept", 100)) for group in order]
    rows_of = [Dot(label, label, value) for label, value in values if value is not None]
    return (dots(rows_of, "", KEPT, 100.0),) if rows_of else ()


def with_kind(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with their `kind`: recipe, control or second stage."""
    kinds = [
        STAGE if sweep == SECOND else CONTROL if point in CONTROLS else RECIPE
        for sweep, point in zip(rows["sweep"], rows["point"], strict=True)
    ]
    return rows.assign(kind=kinds)


def whole_cost(rows: pd.DataFrame, results: Results) -> pd.DataFrame:
    """The rows with `tokens` and `train_flops` summed over a run and those it continues; NaN if one is missing."""
    runs = results.runs.drop_duplicates("run").set_index("run")

    def total(run: str, column: str) -> float:
        if run not in runs.index:
            return float("nan")
        previous = runs["continues"][run]
        return float(runs[column][run]) + (0.0 if pd.isna(previous) else total(previous, column))

    return rows.assign(**{c: [total(run, c) for run in rows["run"]] for c in ("tokens", "train_flops")})


def recipe_table(results: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """One row for the AR parent and one per recipe."""
    measures = headings("accuracy", "nfe", "tokens_per_row", *DEGENERATE, "cloze", "bits_per_byte")
    trained = by_point(rows, measures | {"tokens": "tokens"} | headings("train_flops"), ("kind", "label"))
    parent = parent_row(results, SWEEPS).assign(kind="", label=AR)
    return pd.concat([f for f in (by_point(parent, measures, ("kind", "label")), trained) if len(f)] or [trained])


def by_threshold(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per recipe, with accuracy, TPF and NFE at every threshold below 1."""
    table = by_point(rows.drop_duplicates(["label", "seed"]), {}, ("kind", "label"))
    for threshold, group in by_falling_threshold(rows):
        names = {m: f"{text}, τ {threshold:g}" for m, text in headings("accuracy", "tpf", "nfe").items()}
        table = table.merge(by_point(group, names, ("kind", "label")), on=["kind", "label"], how="left")
    return table


def by_falling_threshold(rows: pd.DataFrame) -> list[tuple[float, pd.DataFrame]]:
    """(threshold, rows) for thresholds below 1, which can commit several tokens per step, highest first."""
    below = rows[rows["threshold"].astype(float) < 1]
    return sorted(below.groupby("threshold"), key=lambda item: -item[0])


def digits(rows: pd.DataFrame) -> dict[str, int]:
    """The decimals of `by_threshold`'s columns."""
    return {f"TPF, τ {threshold:g}": 2 for threshold, _ in by_falling_threshold(rows)}


def costs(results: Results, rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Examples of every recipe with its validation at the end and at equal FLOPs, and a sentence on the latter; without
    rows where neither was measured."""
    table = by_point(rows, {"examples": "examples"} | BOUNDS, ("label",))
    validated, said = with_validation(table, "label", lambda metric: labelled_curves(results, metric), ("examples",))
    return validated if len(validated.columns) > 1 else validated.head(0), said


def labelled_curves(results: Results, metric: str) -> pd.DataFrame:
    """The training curves of the one-stage recipes, with their labels as `point`."""
    curves = training_curves(results, FIRST, metric)
    curves = curves[~curves["point"].isin(CONTROLS)]
    return curves.assign(point=curves["label"])


def sentences(results: Results, one: pd.DataFrame, parallel: pd.DataFrame, parent: pd.DataFrame) -> list[str]:
    """The best one-stage recipes: at equal tokens for every decoding setting, and at equal FLOPs."""
    recipes = one[one["kind"] == RECIPE]
    texts = [*best_of("one token per step", recipes), *against_controls(one, parent), *cheaper(recipes)]
    for threshold, rows in by_falling_threshold(parallel[parallel["kind"] == RECIPE]):
        texts += best_of(f"τ {threshold:g}", rows)
    if recipes.empty:
        return texts
    curves = {kind: labelled_curves(results, metric) for kind, metric in (("answers", ANSWERS), ("prose", PROSE))}
    if not any(map(len, curves.values())):
        return [*texts, f"At equal FLOPs: validation answers and prose were {NOT_MEASURED}."]
    return [*texts, *(best_at_equal_flops(runs_at_equal_flops(of_kind), kind) for kind, of_kind in curves.items())]


def best_of(setting: str, rows: pd.DataFrame) -> list[str]:
    """The most accurate recipe, and its lead over the next."""
    order = rank_groups(rows)
    if not order:
        return []
    best = order[0]
    text = f"At equal tokens, {setting}: {name(best)} is the most accurate of {len(order)}, {score_text(best)}"
    return [f"{text}; {lead_text(best, order[1], name(order[1]))}." if len(order) > 1 else f"{text}; alone."]


def against_controls(one: pd.DataFrame, parent: pd.DataFrame) -> list[str]:
    """The most accurate recipe against the AR parent, more AR training, and random weights."""
    best = (rank_groups(one[one["kind"] == RECIPE]) or [None])[0]
    controls = rank_groups(parent) + rank_groups(one[one["kind"] == CONTROL])
    return (
        [] if best is None else [f"{name(best)}, one token per step: {lead_text(best, c, name(c))}." for c in controls]
    )


def cheaper(rows: pd.DataFrame) -> list[str]:
    """The cheapest recipe whose difference from the most accurate one is undecided."""
    with_cost = rows.dropna(subset=["train_flops"])
    order = rank_groups(with_cost)
    if len(order) < 2:
        return []
    best = order[0]
    cost = best["train_flops"].mean()
    rivals = [g for g in order[1:] if g["train_flops"].mean() < cost and lead_text(best, g, "").endswith("undecided")]
    if not rivals:
        return [f"No recipe that cost fewer FLOPs than {name(best)} comes near enough to be undecided against it."]
    cheapest = min(rivals, key=lambda g: g["train_flops"].mean())
    share = 100 * cheapest["train_flops"].mean() / cost
    lead = lead_text(best, cheapest, "it")
    return [f"With {share:.0f} % of its FLOPs, {name(cheapest)} has {score_text(cheapest)}; {lead}."]


def best_at_equal_flops(equal: pd.DataFrame, kind: str) -> str:
    """The recipe with the lowest bound on validation text of a kind at equal FLOPs, and its lead over the next.
    Accuracy is measured only at the end of training, so it cannot be compared there."""
    order = list(equal["value"].groupby(level="point").mean().sort_values().index) if len(equal) else []
    if len(order) < 2:
        return f"At equal FLOPs, {kind}: fewer than two recipes were validated before the cheapest one's FLOPs."
    best = equal.xs(order[0], level="point")
    leads = [bound_lead(best, equal.xs(point, level="point")) for point in order[1:]]
    num_decided = sum(effect.low > 0 for effect in leads)
    text = f"At equal FLOPs ({equal['flops'].iloc[0] / 1e12:.3g} TFLOP): {order[0]} has the lowest bound on {kind}"
    text += f" of {len(order)}, {best['value'].mean():.3f} bits/byte; {order[1]} has {effect_text(leads[0])} more:"
    return f"{text} {decision(leads[0])}. It differs significantly from {num_decided} of the other {len(leads)}."


def bound_lead(best: pd.DataFrame, other: pd.DataFrame) -> Effect:
    """By how much the bound of `best` is lower, in bits per byte, over seeds."""
    runs = [*best["run"], *other["run"]]
    return scalar_effect("", other["value"] - best["value"], runs, "bits/byte")


def name(rows: pd.DataFrame) -> str:
    """The label of a group of rows, as a noun."""
    label = rows["label"].iloc[0]
    return f"training {label}" if label.startswith("from ") else label
