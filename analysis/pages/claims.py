"""The paper's claims, each tested on our runs by one comparison that was named before they were made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from types import ModuleType
from typing import Any

import pandas as pd
import yaml

from analysis.evidence.causes import budget_sentence, family_sentence
from analysis.evidence.effect import AGREES, CANNOT_DECIDE, DISAGREES, NO_DIFFERENCE, NO_RUNS, UNDECIDED, Effect
from analysis.evidence.intervals import holm
from analysis.pages.exhibits import Table
from analysis.tables.results import Results

PRIMARY_KEYS = {"effect", "expect", "margin", "unit", "why"}


@dataclass(frozen=True)
class Claim:
    """A claim of the paper with its comparisons on our runs, the primary one first. `why` says why that one and its
    margin were chosen; `causes` are what further runs say of a disagreement."""

    id: str
    artefact: str
    text: str
    effects: tuple[Effect, ...]
    why: str = ""
    causes: tuple[str, ...] = ()

    @property
    def primary(self) -> Effect:
        return next(e for e in self.effects if e.primary)

    @property
    def secondary(self) -> tuple[Effect, ...]:
        return tuple(e for e in self.effects if not e.primary)

    @property
    def verdict(self) -> str:
        return self.primary.verdict

    @property
    def reason(self) -> str:
        return self.primary.reason

    @property
    def cause(self) -> str:
        """The causes as one text; "" without any."""
        return " ".join(self.causes)


def paper_numbers() -> dict[str, Any]:
    """The paper's numbers, settings and claims, from `analysis/paper.yaml`."""
    return yaml.safe_load(resources.files("analysis").joinpath("paper.yaml").read_text(encoding="utf-8"))


def evaluate_claims(results: Results, paper: dict[str, Any], modules: Mapping[str, ModuleType]) -> list[Claim]:
    """Evaluate every claim of the paper with the function of its artefact's module that is named like its id."""
    effects = [with_primary(c, getattr(modules[c["from"]], c["id"])(results, paper)) for c in paper["claims"]]
    primaries = [of_claim[0] for of_claim in effects]
    p, p_same = (
        [None if math.isnan(adjusted) else adjusted for adjusted in holm(values)]
        for values in ([e.p for e in primaries], [e.p_same for e in primaries])
    )
    claims = []
    for c, of_claim, p_holm, p_same_holm in zip(paper["claims"], effects, p, p_same, strict=True):
        primary = replace(of_claim[0], p_holm=p_holm, p_same_holm=p_same_holm)
        causes = causes_of(c["id"], primary, results, modules) if primary.verdict == DISAGREES else ()
        claims.append(Claim(c["id"], c["from"], c["text"], (primary, *of_claim[1:]), c["primary"]["why"], causes))
    return claims


def with_primary(claim: dict[str, Any], effects: Sequence[Effect]) -> list[Effect]:
    """The effects of a claim, with what `paper.yaml` says beforehand of the primary one, which comes first.

    Raises `ValueError` if the claim lacks a key, or names an effect that its function does not make in that unit.
    """
    plan = claim["primary"]
    if set(plan) != PRIMARY_KEYS:
        raise ValueError(f"claim {claim['id']}: primary has {sorted(plan)}, it needs {sorted(PRIMARY_KEYS)}")
    chosen = [e for e in effects if e.id == plan["effect"]]
    if len(chosen) != 1 or chosen[0].unit != plan["unit"]:
        names = ", ".join(f"{e.id} ({e.unit})" for e in effects)
        raise ValueError(
            f"claim {claim['id']}: its primary effect is {plan['effect']} ({plan['unit']}), not one of {names}"
        )
    primary = replace(chosen[0], primary=True, margin=plan["margin"], expectation=plan["expect"])
    return [primary, *(with_margin(e, primary) for e in effects if e.id != plan["effect"])]


def with_margin(effect: Effect, primary: Effect) -> Effect:
    """A secondary comparison with the primary's margin, if it is in the same unit and has none of its own."""
    same = effect.margin is None and effect.unit == primary.unit
    return replace(effect, margin=primary.margin) if same else effect


def causes_of(claim: str, effect: Effect, results: Results, modules: Mapping[str, ModuleType]) -> tuple[str, ...]:
    """What other budgets and single families say of an effect. A module with runs at other budgets has a function for
    the claim in its `BY_BUDGET`."""
    by_budget = [
        at
        for module in modules.values()
        for make in [getattr(module, "BY_BUDGET", {}).get(claim)]
        if make
        for at in make(results)
    ]
    sentences = [budget_sentence([(t, e) for t, e in by_budget if e.seeds], effect_text), family_sentence(effect)]
    return tuple(filter(None, sentences))


def effect_text(effect: Effect) -> str:
    """An effect with its interval, `+9.5 points (+3.1 to +15.8)`; – without a value."""
    if effect.mean is None:
        return "–"
    value, low, high = (f"{x:+.{effect.digits}f}" for x in (effect.value, effect.low, effect.high))
    interval = "" if pd.isna(effect.low) else f" ({low} to {high})"
    return (value + f" {effect.unit}".rstrip() + interval).replace("-", "−")


COUNTED = {
    AGREES: "agree",
    DISAGREES: "disagree",
    NO_DIFFERENCE: "show no difference",
    UNDECIDED: "are undecided",
    CANNOT_DECIDE: "cannot be decided by this set-up",
    NO_RUNS: "have no runs",
}
SINGULAR = {"agree": "agrees", "disagree": "disagrees", "show": "shows", "are": "is", "cannot": "cannot", "have": "has"}


def count_text(claims: Iterable[Claim]) -> dict[str, str]:
    """Verdict → how many claims have it, in words, for those that any has: `5 claims agree`, `1 claim agrees`."""
    verdicts = [claim.verdict for claim in claims]
    texts = {}
    for verdict, plural in COUNTED.items():
        if number := verdicts.count(verdict):
            verb, _, rest = plural.partition(" ")
            text = f"{SINGULAR[verb]} {rest}".strip() if number == 1 else plural
            texts[verdict] = f"{number} claim{'s' if number > 1 else ''} {text}"
    return texts


def claim_table(claims: list[Claim]) -> Table:
    """One row per comparison of every claim, for Markdown, LaTeX and the terminal."""
    rows = [
        {
            "claim": claim.text if effect.primary else "",
            "verdict": claim.verdict if effect.primary else "",
            "comparison": f"{'primary' if effect.primary else 'secondary'}: {effect.what}",
            "here (95 %)": effect_text(effect),
            "margin": "–" if effect.margin is None else effect.amount(effect.margin),
            "paper": effect.in_paper,
            "found": effect.verdict,
            "why": effect.reason,
        }
        for claim in claims
        for effect in claim.effects
    ]
    return Table(pd.DataFrame(rows), RULE)


RULE = (
    "The verdict on a claim is that on its primary comparison, which, like its margin (the smallest effect of "
    "interest), was chosen before the runs were made (analysis/paper.yaml). It agrees or disagrees where the "
    "difference is significant (5 %, at least three seeds); there is no difference where two one-sided tests place it "
    "within the margin. p-values of primary comparisons are corrected by Holm's method over all claims, those of "
    "secondary ones are not. A claim cannot be decided by this set-up where decoding, a floor or a ceiling of "
    "accuracy, or the smallest effect that the seeds and items can detect (power 80 %) forbid it. Intervals are "
    "uncorrected; those of accuracy are paired, with items within their family where it is recorded."
)
