"""Accuracy against what decoding costs, for every recipe in every way of decoding, beside the AR baselines."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.artefacts.recipes import AR, CONTROL, CONTROLS, SWEEPS, with_kind
from analysis.evidence.compare import by_point
from analysis.evidence.frontier import optimal
from analysis.pages.exhibits import Exhibit, Plot, Table, headings
from analysis.pages.findings import coverage, findings, lead_text, rank_groups, score_text
from analysis.pages.plots import trade_off
from analysis.tables.results import PARENT, Results

PLACE = 260
TITLE = "Beyond the paper: accuracy against forwards and speed"
TOPIC = "decoding"
# Evaluation of an AR baseline → its way of decoding: token by token, or with drafts by lookup.
WAYS = {"parent": "ar", "parent_lookup": "lookup"}
ORACLE, BASELINE = "oracle", "baseline"
KEYS = ("label", "decoding", "setting")
BUDGETS = {"no more forwards than AR": 1.0, "half of AR's forwards": 0.5, "a quarter of AR's forwards": 0.25}
SPEEDS = {"as fast as AR": 1.0, "twice as fast as AR": 2.0}
DIGITS = {"TPF": 2, "tokens/row": 2, "tokens/s": 0}


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = decodings(results)
    usable, runs_text = rows[rows["decoding"] != ORACLE], coverage(results, SWEEPS)
    points, ceiling = pareto_points(usable), pareto_points(rows[rows["decoding"] == ORACLE])
    panels = (
        trade_off(points, "NFE", "best_nfe", "accuracy and forwards", "forwards per answer (NFE)"),
        trade_off(points, "tokens/s", "best_speed", "accuracy and speed", "tokens/s, batch 1"),
    )
    ways = [way(*names) for names in points[["decoding", "setting"]].itertuples(index=False)]
    columns = ["label", "decoding", "optimal", *headings(*MEASURES).values()]
    every = points.assign(decoding=ways)[columns].rename(columns={"label": "model"})
    return [
        findings(sentences(usable), f"{runs_text} Each model in every way of decoding, the oracle apart.", DECIDED),
        Plot("frontier", panels, SAID, "Accuracy against forwards and tokens per second of recipes and decoding modes"),
        Table(every[every["optimal"] != ""], f"Pareto-optimal points. {OPTIMAL}", DIGITS),
        Table(every, "Every point.", DIGITS, aside=True),
        *([] if ceiling.empty else oracle_exhibits(ceiling)),
    ]


DECIDED = "Decided as among the recipes above."
MEASURES = ("accuracy", "tpf", "nfe", "tokens_per_row", "tokens_per_second")
SAID = (
    "A line is a model in one way of decoding, through its settings; means over seeds, bars: 95% intervals. Named and "
    "in colour are those with a Pareto-optimal point (filled) and the baselines: the AR parent, the AR control (the "
    "parent trained further), and both with drafts by lookup (n-grams of the text itself). The others are grey."
)
OPTIMAL = (
    "Optimal: no other point is as accurate for fewer forwards (NFE), or at more tokens/s (speed), by their means; "
    "intervals are not looked at."
)
APART = (
    "The oracle commits what agrees with decoding one token per step: a ceiling for commit rules, which no decoder one "
    "can use reaches."
)


def oracle_exhibits(ceiling: pd.DataFrame) -> list[Exhibit]:
    """Figure and table of the oracle's points."""
    figure = trade_off(ceiling, "NFE", "best_nfe", "the oracle", "forwards per answer (NFE)")
    table = ceiling[["label", "accuracy %", "TPF", "NFE"]].rename(columns={"label": "model"})
    return [
        Plot("frontier_oracle", (figure,), APART, "Accuracy against forwards of the oracle of commit rules"),
        Table(table, APART, DIGITS, aside=True),
    ]


def decodings(results: Results) -> pd.DataFrame:
    """Rows of all ways of decoding, with `label`, `kind` and `decoding`. The AR parent has an equal row per seed."""
    rows = results.of("evaluations", SWEEPS)
    rows = with_kind(rows[rows["nfe"].notna() & (rows["evaluation"] != "")])
    is_ar_by_threshold = (rows["point"] == CONTROLS[0]) & (
        rows["evaluation"] == "threshold"
    )  # an AR model has no threshold below 1
    rows = rows[~is_ar_by_threshold | (rows["threshold"].astype(float) >= 1)]
    is_parent, is_control = rows["model"] == PARENT, rows["point"] == CONTROLS[0]
    ways = [WAYS.get(e, e) for e in rows["evaluation"].mask(is_control & (rows["evaluation"] == "threshold"), "parent")]
    kind = rows["kind"].mask(is_parent | is_control, BASELINE)
    return rows.assign(label=rows["label"].mask(is_parent, AR), kind=kind, decoding=ways)


def pareto_points(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per model, decoding and setting: estimates, `name`, whether it is a `baseline`, and whether it is optimal
    (Pareto) in forwards (`best_nfe`) and in tokens per second (`best_speed`)."""
    distinct = rows[(rows["model"] != PARENT) | ~rows.duplicated(["parent", *KEYS])]
    points = by_point(distinct, headings(*MEASURES), KEYS)
    kinds = rows.drop_duplicates("label").set_index("label")["kind"]
    baseline = points["label"].map(kinds).eq(BASELINE)
    accuracy = means(points["accuracy %"])
    best_nfe, best_speed = optimal(means(points["NFE"]), accuracy), optimal(-means(points["tokens/s"]), accuracy)
    axes = np.array(["", "NFE", "speed", "NFE, speed"], dtype=object)[best_nfe + 2 * best_speed]
    names = [f"{label}, {plain(decoding)}" for label, decoding in zip(points["label"], points["decoding"], strict=True)]
    return points.assign(name=names, baseline=baseline, best_nfe=best_nfe, best_speed=best_speed, optimal=axes)


def means(column: pd.Series) -> Float[np.ndarray, " n"]:
    """The means of a column of estimates, NaN for None."""
    return np.array([np.nan if value is None else value.mean for value in column], dtype=float)


def sentences(rows: pd.DataFrame) -> list[str]:
    """The most accurate way of decoding within each budget of forwards and at each speed, relative to the AR parent."""
    ar = rows[(rows["label"] == AR) & (rows["decoding"] == "ar")]
    if rows.empty:
        return []
    if ar.empty:
        return ["The AR parent was not measured, so there is no budget to compare at: measure `parent` of the sweep."]
    forwards, speed = ar["nfe"].mean(), ar["tokens_per_second"].astype(float).mean()
    groups = [group for _, group in rows.groupby(list(KEYS), sort=False)]
    converted = [g for g in groups if g["kind"].iloc[0] not in (BASELINE, CONTROL)]
    lookup = [g for g in groups if g["label"].iloc[0] == AR and g["decoding"].iloc[0] == "lookup"]
    texts = [
        best_within(f"With {what} (NFE ≤ {share * forwards:.1f})", converted, ar, lookup, within)
        for what, share in BUDGETS.items()
        for within in [lambda g, most=share * forwards: g["nfe"].mean() <= most]
    ]
    texts += [
        best_within(f"At least {what} ({times * speed:.0f} tokens/s)", converted, ar, lookup, within)
        for what, times in SPEEDS.items()
        for within in [lambda g, least=times * speed: g["tokens_per_second"].astype(float).mean() >= least]
    ]
    return texts


def best_within(
    what: str,
    groups: list[pd.DataFrame],
    ar: pd.DataFrame,
    lookup: list[pd.DataFrame],
    within: Callable[[pd.DataFrame], bool],
) -> str:
    """The most accurate of the groups within a budget, and its leads over the next model and the baselines."""
    candidates = [g for g in groups if within(g)]
    if not candidates:
        return f"{what}: no recipe."
    order = rank_groups(pd.concat(candidates), KEYS)
    best = order[0]
    others = [g for g in order[1:] if g["label"].iloc[0] != best["label"].iloc[0]]
    rivals = [(g, title(g)) for g in others[:1]] + [(ar, AR)]
    rivals += [(g, f"{AR} with lookup at NFE {g['nfe'].mean():.1f}") for g in lookup]
    leads = "; ".join(lead_text(best, rival, name) for rival, name in rivals)
    return f"{what}: {title(best)} is the most accurate recipe, {score_text(best)}; {leads}."


def plain(text: str) -> str:
    """A name made of settings as words: `self_speculative, fused True` is `self speculative, fused`."""
    return text.replace(" True", "").replace("_", " ")


def way(decoding: str, setting: str) -> str:
    """A way of decoding with its setting, each word once."""
    decoding, setting = plain(decoding), plain(setting)
    return setting if decoding in ("threshold", setting) else f"{decoding}, {setting}"


def title(rows: pd.DataFrame) -> str:
    """A group's label with its decoding setting."""
    label, decoding, setting = (str(rows[key].iloc[0]) for key in KEYS)
    return f"{plain(label)} ({way(decoding, setting)})"
