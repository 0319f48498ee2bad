"""Sentences on why a comparison comes out as it does, made from the same comparison at other budgets and by family."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from analysis.evidence.effect import ALPHA, Effect


def budget_sentence(by_budget: Sequence[tuple[float, Effect]], text: Callable[[Effect], str]) -> str:
    """What the comparison is at every budget (training tokens), and what that says; "" with fewer than two budgets."""
    ordered = sorted(by_budget, key=lambda item: item[0])
    if len({tokens for tokens, _ in ordered}) < 2:
        return ""
    first, last = ordered[0][1], ordered[-1][1]
    listed = "; ".join(f"{text(effect)} at {amount(tokens)} tokens" for tokens, effect in ordered)
    return f"By budget, {last.what}: {listed}. {trend(first, last)}"


def trend(first: Effect, last: Effect) -> str:
    """How the effect differs between the smallest and the largest budget."""
    if last.p < ALPHA and last.value > 0:
        return "At the largest budget it is as in the paper, so the budget is the cause."
    if last.low > first.high:
        rest = "until it is not significant" if last.p >= ALPHA else "but does not vanish"
        return f"With more training the disagreement shrinks {rest}: the budget is a cause."
    if last.high < first.low:
        return "With more training the disagreement grows: the budget is not the cause."
    return "The intervals overlap: the budget is not shown to be the cause."


def family_sentence(effect: Effect) -> str:
    """In which families the effect has which sign, and what it is where answers are shortest and longest; "" for fewer
    than two families."""
    parts = effect.by_family
    if len(parts) < 2:
        return ""
    below = [p for p in parts if p.mean.high < 0]
    above = [p for p in parts if p.mean.low > 0]
    ends = " and ".join(
        f"{p.mean.value:+.1f} ({p.mean.low:+.1f} to {p.mean.high:+.1f}) in {p.name.replace('_', ' ')}, of "
        f"{p.answer_tokens:.3g} tokens an answer"
        for p in (parts[0], parts[-1])
    )
    text = f"By family it is below 0 in {len(below)} and above in {len(above)} of {len(parts)}; {ends}."
    return text.replace("-", "−")


def amount(tokens: float) -> str:
    """Tokens in millions: `0.5M`."""
    return f"{tokens / 1e6:.3g}M"
