"""Token shift against the budget of the conversion: where do the curves cross?"""

from __future__ import annotations

from itertools import pairwise

import pandas as pd

from analysis.evidence.compare import accuracy_effect, at_budgets, budgets, by_point, final_evaluation, scalar_effect
from analysis.evidence.effect import AGREES, DISAGREES, Effect
from analysis.evidence.stats import estimate
from analysis.pages.claims import effect_text
from analysis.pages.exhibits import Exhibit, Plot, Table, headings
from analysis.pages.plots import lines
from analysis.tables.results import DLM, Results

PLACE = 240
TITLE = "Beyond the paper: token shift and budget"
TOPIC = "training"
BY_ACCURACY = ("shift_by_budget", "shift_by_setting", "shift_by_position")
BY_POSITION = ("figure12_position_loss", "shift_by_position")
SWEEPS = (*BY_ACCURACY, "figure12_position_loss")
ARMS = ("with the shift", "without")  # fixes their colours in all panels
IN_BLOCK = "position in the block"
SETTING = ["size", "attention_name", "block_size", "lr"]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = with_setting(at_budgets(final_evaluation(results.of("evaluations", BY_ACCURACY)).drop_duplicates("run")))
    measures = headings("accuracy", "tpf", "nfe", "bits_per_byte", "train_flops")
    losses = block_losses(results)
    panels = [
        lines(group, "tokens", "accuracy", "shift", name, "training tokens", "accuracy, %", 100, log=True, order=ARMS)
        for name, group in rows.groupby("setting_name", sort=False)
        if group["tokens"].nunique() > 1
    ]
    table = by_point(rows, measures, ("setting_name", "tokens", "shift")).rename(columns={"setting_name": "conversion"})
    return [
        Plot(
            "shift_by_budget", tuple(panels), "At one token per step; bands: range over seeds.", "Accuracy over tokens"
        ),
        Table(
            gains(rows),
            "What the shift gains in accuracy and in the bound. Crossing: where the means meet, interpolated.",
        ),
        Plot(
            "shift_by_position",
            tuple(
                lines(at, "position", "value", "shift", f"{tokens:,.0f} tokens", IN_BLOCK, "loss, nats", order=ARMS)
                for tokens, at in losses.groupby("tokens")
            ),
            "Loss of a masked token over its position in the block, under clean context.",
            "Loss over the position in the block with and without shift",
        ),
        Table(gain_by_position(losses), FIRST, 3),
        Table(table, "Every run, at one token per step.", {"TPF": 2, "bits/byte": 3, "TFLOP": 2}, aside=True),
    ]


FIRST = (
    "What the shift gains in the loss of a masked token, by its position in the block. With the shift, the clean last "
    "token of the block before predicts the first token of a block, as in the AR parent: position 0 is what that gains."
)


def block_losses(results: Results) -> pd.DataFrame:
    """`value`: the loss (nats) of a masked token by `position` in the block, per run of the dLM, with its `shift`."""
    losses = at_budgets(results.of("positions", BY_POSITION))
    return with_shift(losses[(losses["quantity"] == "loss") & (losses["model"] == DLM)])


def gain_by_position(losses: pd.DataFrame) -> pd.DataFrame:
    """The loss that the shift saves, in nats per masked token, as estimates over the seeds that have both.

    One row per position in the block and one for their mean; one column per budget.
    """
    values = losses.pivot_table(index=["tokens", "position", "seed"], columns="token_shift", values="value")
    if set(values) != {True, False}:
        return pd.DataFrame(columns=["position"])
    gain = (values[False] - values[True]).rename("gain").dropna().reset_index()
    mean = gain.groupby(["tokens", "seed"], as_index=False)["gain"].mean().assign(position="mean")
    gain = pd.concat([gain, mean])
    estimates = {at: estimate(rows, "gain") for at, rows in gain.groupby(["position", "tokens"], sort=False)}
    positions, budgets = (gain[c].unique() for c in ("position", "tokens"))
    columns = {f"nats at {t:,.0f} tokens": [estimates.get((p, t)) for p in positions] for t in budgets}
    return pd.DataFrame({"position": [str(p) for p in positions]} | columns)


def with_shift(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with their token shift as text, one of `ARMS`."""
    return rows.assign(shift=[ARMS[not shift] for shift in rows["token_shift"]])


def with_setting(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `shift` and `setting_name`, the values of `SETTING` that the runs of a curve share."""
    sizes = [f"{v / 1e6:.3g}M" for v in rows["parameters"]]
    rows = with_shift(rows).assign(size=sizes).sort_values([*SETTING, "tokens"])
    names = [f"{size}, {a}, block {b:g}, lr {lr:g}" for size, a, b, lr in rows[SETTING].itertuples(index=False)]
    return rows.assign(setting_name=names)


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per curve and budget: the gain of the shift in accuracy and in bits per byte, and where each changes its
    sign."""
    columns = ["conversion", "tokens", "points", "bits/byte saved", "accuracy crosses at", "bits/byte crosses at"]
    table = []
    for name, group in rows.groupby("setting_name", sort=False):
        effects = {}
        for tokens, at_budget in group.groupby("tokens"):
            shifted = at_budget["token_shift"].astype(bool)
            pair = at_budget[shifted], at_budget[~shifted]
            effect = accuracy_effect(*pair, name)
            if effect.seeds:
                effects[tokens] = effect, bound_effect(*pair, name)
        crossings = [crossing({tokens: both[i] for tokens, both in effects.items()}) for i in (0, 1)]
        for i, (tokens, both) in enumerate(effects.items()):
            once = (name, *crossings) if i == 0 else ("", "", "")
            gained = (effect_text(effect).replace(f" {effect.unit}", "") for effect in both)
            table.append([once[0], f"{tokens:,.0f}", *gained, *once[1:]])
    return pd.DataFrame(table, columns=columns)


def bound_effect(shifted: pd.DataFrame, plain: pd.DataFrame, what: str) -> Effect:
    """Bits per byte that the shift saves, paired by seed."""
    bits = [rows.set_index("seed")["bits_per_byte"] for rows in (plain, shifted)]
    return scalar_effect(what, bits[0] - bits[1], [*shifted["run"], *plain["run"]], "bits/byte")


def crossing(effects: dict[float, Effect]) -> str:
    """The tokens at which the gain reaches 0, interpolated over log tokens, as text; – without any effect.

    It is `undecided` unless the gain is decided with one sign at a budget before, and with the other at one after.
    """
    tokens = sorted(t for t, effect in effects.items() if effect.seeds)
    if not tokens:
        return "–"
    for a, b in pairwise(tokens):
        before, after = effects[a].value, effects[b].value
        if before * after < 0:
            at = millions(a * (b / a) ** (before / (before - after)))
            sides = [{effects[t].verdict for t in tokens if (t <= a) == early} for early in (True, False)]
            decided = all(verdict in side for verdict, side in zip(signs(before), sides, strict=True))
            return f"near {at}" if decided else f"near {at}, undecided"
    last = effects[tokens[-1]]
    return f"{'none up to' if last.verdict in (AGREES, DISAGREES) else 'undecided at'} {millions(tokens[-1])}"


def signs(before: float) -> tuple[str, str]:
    """The verdicts on a decided gain before and after it changes its sign, which `before` has."""
    return (AGREES, DISAGREES) if before > 0 else (DISAGREES, AGREES)


def millions(tokens: float) -> str:
    return f"{tokens / 1e6:.2g}M"


def dropped_shift(results: Results) -> list[tuple[float, Effect]]:
    """What dropping the shift gains at every budget, for the setting that was trained with most of them and block-wise
    attention."""
    rows = with_setting(final_evaluation(results.of("evaluations", BY_ACCURACY)).drop_duplicates("run"))
    rows = rows[rows["attention_name"] == "block"]
    if rows.empty:
        return []
    rows = rows.assign(budget=budgets(rows))
    setting = rows.groupby("setting_name")["budget"].nunique().idxmax()
    effects = []
    for tokens, group in rows[rows["setting_name"] == setting].groupby("budget"):
        shifted = group["token_shift"].astype(bool)
        effects.append((tokens, accuracy_effect(group[~shifted], group[shifted], "without − with the token shift")))
    return effects


BY_BUDGET = {"no_token_shift_helps": dropped_shift}  # claim → its comparison at every budget
