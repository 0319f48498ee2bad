"""One comparison behind a claim of the paper: the effect, what was expected of it, and the verdict with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from analysis.evidence.intervals import Mean

ALPHA = 0.05
SEEDS_NEEDED = 3
FLOOR = 5.0  # percent: two arms below it cannot be told apart
AGREES, DISAGREES, NO_DIFFERENCE = "agrees", "disagrees", "no difference"
UNDECIDED, CANNOT_DECIDE, NO_RUNS = "undecided", "cannot decide", "no runs"
VERDICTS = (AGREES, DISAGREES, NO_DIFFERENCE, UNDECIDED, CANNOT_DECIDE, NO_RUNS)
# What is expected of a value: that it is above 0 (of a difference, a trend or a curvature), or that it is none.
GREATER, TREND, QUADRATIC, SAME = "greater", "trend", "quadratic contrast", "no difference"
EXPECTATIONS = (GREATER, TREND, QUADRATIC, SAME)


@dataclass(frozen=True)
class Part:
    """An effect in one family of tasks, whose answers have `answer_tokens` tokens on average."""

    name: str
    answer_tokens: float
    mean: Mean


@dataclass(frozen=True)
class Effect:
    """One comparison. Its `value`, with interval and p-value, is signed so that the paper expects it above 0, or, where
    the `expectation` is "no difference", near 0.

    `id` names it within its claim. `unit` and `digits` are those of the value and of all that is compared with it:
    `margin`, the smallest effect of interest, and `paper`, the paper's effect as a number (`in_paper`: as printed).
    `parent`, `paper_parent` and `arms` (better, worse, or all of a contrast) are accuracies in percent, where the
    effect is one of accuracy; `by_family` is the effect in every family of tasks, by growing length of its answers.
    `obstacle` says why these runs could not show the effect, whatever it is. `runs` are the ids compared, points of
    `sweep`; `missing` names the runs to make if there is nothing to compare. `p_holm` and `p_same_holm` are corrected
    over the primary comparisons of all claims.
    """

    what: str
    mean: Mean | None = None
    seeds: int = 0
    items: int | None = None
    unit: str = "points"
    digits: int = 1
    id: str = ""
    expectation: str = GREATER
    margin: float | None = None
    in_paper: str = ""
    paper: float | None = None
    paper_parent: float | None = None
    parent: float | None = None
    arms: tuple[float, ...] = ()
    by_family: tuple[Part, ...] = ()
    obstacle: str = ""
    runs: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    sweep: str = ""
    primary: bool = False
    p_holm: float | None = None
    p_same_holm: float | None = None

    @property
    def value(self) -> float:
        return math.nan if self.mean is None else self.mean.value

    @property
    def low(self) -> float:
        return math.nan if self.mean is None else self.mean.low

    @property
    def high(self) -> float:
        return math.nan if self.mean is None else self.mean.high

    @property
    def p(self) -> float:
        """Two-sided, of no effect."""
        return math.nan if self.mean is None else self.mean.p

    @property
    def p_same(self) -> float:
        """Of an effect outside ± `margin`; NaN without a margin."""
        return math.nan if self.mean is None or self.margin is None else self.mean.p_within(self.margin)

    @property
    def percent_of_parent(self) -> tuple[float, float, float] | None:
        """(value, low, high) in percent of the parent's accuracy; None for what is not accuracy."""
        if self.mean is None or not self.parent:
            return None
        return tuple(100 * x / self.parent for x in (self.value, self.low, self.high))

    @property
    def paper_percent(self) -> float | None:
        """The paper's effect in percent of its parent; None if not known."""
        return None if self.paper is None or not self.paper_parent else 100 * self.paper / self.paper_parent

    @property
    def paper_here(self) -> float | None:
        """The size of the paper's effect in the unit of `value`, at this parent where both parents are known."""
        if self.paper_percent is not None and self.parent:
            return abs(self.paper_percent) * self.parent / 100
        return None if self.paper is None else abs(self.paper)

    @property
    def basis(self) -> str:
        """What it rests on: `3 seeds × 360 items`."""
        return f"{self.seeds} seed{'s' if self.seeds != 1 else ''}" + (f" × {self.items} items" if self.items else "")

    @cached_property
    def judgement(self) -> tuple[str, str]:
        """The verdict and its reason."""
        return judge(self)

    @property
    def verdict(self) -> str:
        return self.judgement[0]

    @property
    def reason(self) -> str:
        """What decides the verdict, or what would."""
        return self.judgement[1]

    def amount(self, value: float) -> str:
        """A size in the effect's unit, without sign: `3.0 points`."""
        return f"{value:.{self.digits}f} {self.unit}".rstrip()


def p_text(p: float) -> str:
    """A p-value as text: `p = 0.014`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def judge(effect: Effect) -> tuple[str, str]:
    """The verdict on a comparison, and its reason."""
    if effect.obstacle:
        return CANNOT_DECIDE, effect.obstacle
    if effect.mean is None:
        return NO_RUNS, "to run: " + ", ".join(effect.missing) if effect.missing else "nothing measured"
    if effect.seeds < SEEDS_NEEDED or math.isnan(effect.p):
        leaning = "over items it agrees, " if effect.low > 0 else "over items it disagrees, " if effect.high < 0 else ""
        return UNDECIDED, f"{effect.basis}; {leaning}a verdict needs {SEEDS_NEEDED} seeds"
    return judge_sameness(effect) if effect.expectation == SAME else judge_direction(effect)


def judge_direction(effect: Effect) -> tuple[str, str]:
    """The verdict where the paper expects a value above 0.

    Near the parent no difference is a finding only where the paper's own effect is below the margin: a larger one might
    be hidden there.
    """
    p, p_same = corrected(effect)
    paper, margin, saturated = effect.paper_here, effect.margin, saturation(effect)
    if p_same < ALPHA and (not saturated or (paper is not None and paper <= margin and not at_floor(effect))):
        within = f"{effect.basis}; within ±{effect.amount(margin)}, {p_text(p_same)}"
        if paper is None or paper <= margin:
            return NO_DIFFERENCE, within
        return DISAGREES, f"{within}, where the paper's effect would be {effect.amount(paper)}"
    if p < ALPHA:
        return AGREES if effect.value > 0 else DISAGREES, f"{effect.basis}; {p_text(p)}"
    return saturated or lack_of_power(effect)


def judge_sameness(effect: Effect) -> tuple[str, str]:
    """The verdict where the paper expects no difference. Raises `ValueError` without a margin."""
    if effect.margin is None:
        raise ValueError(f"{effect.what}: no difference is expected, so a margin is needed: add one to paper.yaml")
    p_same = corrected(effect)[1]
    if at_floor(effect):
        return saturation(effect)
    if p_same < ALPHA:
        return AGREES, f"{effect.basis}; within ±{effect.amount(effect.margin)}, {p_text(p_same)}"
    if effect.low > effect.margin or effect.high < -effect.margin:
        return DISAGREES, f"{effect.basis}; the interval lies outside ±{effect.amount(effect.margin)}"
    return lack_of_power(effect)


def corrected(effect: Effect) -> tuple[float, float]:
    """The p-values of no effect and of a relevant one; Holm's for primary comparisons. One that is unknown is 1."""
    pairs = ((effect.p_holm, effect.p), (effect.p_same_holm, effect.p_same))
    p, p_same = (plain if adjusted is None else adjusted for adjusted, plain in pairs)
    return (1.0 if math.isnan(p) else p), (1.0 if math.isnan(p_same) else p_same)


def at_floor(effect: Effect) -> bool:
    """Whether all arms are so low that nothing could tell them apart."""
    return bool(effect.arms) and max(effect.arms) < FLOOR


def saturation(effect: Effect) -> tuple[str, str] | None:
    """The verdict where both arms are so low, or so near the parent, that accuracy cannot tell them apart."""
    if not effect.arms:
        return None
    low, high = min(effect.arms), max(effect.arms)
    both = "both arms" if len(effect.arms) == 2 else f"all {len(effect.arms)} arms"
    if at_floor(effect):
        return CANNOT_DECIDE, f"{both} are below {FLOOR:g} % ({low:.1f} and {high:.1f} %)"
    if effect.parent and effect.margin and low > effect.parent - effect.margin:
        near = f"within {effect.amount(effect.margin)} of their parent"
        return CANNOT_DECIDE, f"{both} are {near} ({low:.1f} to {high:.1f} of {effect.parent:.1f} %)"
    return None


def lack_of_power(effect: Effect) -> tuple[str, str]:
    """The verdict where the interval is too wide, with what would be needed to see the smallest effect of interest."""
    detectable, margin, paper = effect.mean.detectable, effect.margin, effect.paper_here
    sees = f"{effect.basis} detect {effect.amount(detectable)}"
    if margin is None:
        return UNDECIDED, f"{effect.basis}; the interval contains 0"
    seeds = effect.mean.seeds_to_detect(margin)
    needs = f"{effect.amount(margin)} would take " + (f"{seeds} seeds" if seeds else "more items, not more seeds")
    if paper is not None and detectable > max(paper, margin):
        return CANNOT_DECIDE, f"{sees}, more than the paper's {effect.amount(paper)}; {needs}"
    if detectable > margin:
        return UNDECIDED, f"{sees}; {needs}"
    return UNDECIDED, f"{sees}; neither an effect nor its absence is significant after correction"
