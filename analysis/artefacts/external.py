"""Do our comparisons point where published ones at other scales do?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module, resources
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from analysis.artefacts import contested_factorial
from analysis.evidence.compare import accuracy_effect, compare, final_evaluation, parent_row
from analysis.evidence.effect import AGREES, CANNOT_DECIDE, DISAGREES, GREATER, NO_RUNS, Effect, judge
from analysis.evidence.geometry import too_few_blocks, with_several_blocks
from analysis.evidence.stats import Estimate
from analysis.pages.claims import effect_text
from analysis.pages.dots import Dot, dots
from analysis.pages.exhibits import Exhibit, Plot, Table
from analysis.tables.results import Results

PLACE = 270
TITLE = "Beyond the paper: external validation"
TOPIC = "recipes"
FACTORIAL, BLOCKS, RECIPES, MONOTONE = "contested_factorial", "figure3_block_size", "recipes", "monotone_noise"
SWEEPS = ("table1_attention", FACTORIAL, BLOCKS, RECIPES, MONOTONE)
SAID = (
    "Differences in points, each on its own tasks, so that only their side of 0 is to be compared. The published ones "
    "are of single runs without intervals. Ours agree or disagree where they are significant (5%, three seeds, "
    "uncorrected)."
)
SECOND_HAND = "* second hand: numbers from notes or an abstract, unverified."


@dataclass(frozen=True)
class Comparison:
    """A published comparison beside `ours` of the same choice, with the same sign."""

    what: str
    published: dict[str, Any]
    ours: Effect

    @property
    def verdict(self) -> tuple[str, str]:
        """Whether ours has the sign of the published one, by the rule of the claims, and why."""
        mean = self.ours.mean and self.ours.mean.scaled(self.published["direction"])
        return judge(replace(self.ours, mean=mean, expectation=GREATER, margin=None))


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    compared = comparisons(results, paper)
    panels = (drawn(compared),) if any(c.ours.mean for c in compared) else ()
    return [
        Plot("external", panels, f"{counts(compared)} {SAID}", "Published differences beside ours"),
        Table(table(compared), f"The published differences. {SECOND_HAND}{why_not(compared)}"),
    ]


def comparisons(results: Results, paper: dict) -> list[Comparison]:
    """Every published comparison of `analysis/published.yaml` beside ours."""
    sections = yaml.safe_load(resources.files("analysis").joinpath("published.yaml").read_text(encoding="utf-8"))
    effects = [ours(section["ours"], results, paper) for section in sections]
    return [Comparison(s["what"], p, e) for s, e in zip(sections, effects, strict=True) for p in s["published"]]


def ours(name: str, results: Results, paper: dict) -> Effect:
    """Our comparison of a name of `published.yaml`. Raises `ValueError` for a name that is none."""
    if name in OURS:
        return OURS[name](results)
    claim, _, id = name.partition("/")
    home = {c["id"]: c["from"] for c in paper["claims"]}
    effects = (
        getattr(import_module(f"analysis.artefacts.{home[claim]}"), claim)(results, paper) if claim in home else []
    )
    effect = next((e for e in effects if e.id == id), None)
    if effect is None:
        raise ValueError(
            f"published.yaml: {name!r} is no comparison of ours: choose CLAIM/EFFECT, or one of {', '.join(OURS)}"
        )
    return effect


def counts(compared: Sequence[Comparison]) -> str:
    """How many comparisons agree, disagree, have no runs or are undecided."""
    verdicts = [c.verdict[0] for c in compared]
    agree, disagree, none = (verdicts.count(v) for v in (AGREES, DISAGREES, NO_RUNS))
    undecided = len(compared) - agree - disagree - none
    return (
        f"Of {len(compared)} published differences, ours agree with {agree} and disagree with {disagree}; {undecided} "
        f"are undecided, and {none} have no runs here."
    )


def why_not(compared: Sequence[Comparison]) -> str:
    """Why our runs cannot decide some comparisons, each reason once."""
    reasons = dict.fromkeys(f"{c.what}: {c.verdict[1]}" for c in compared if c.verdict[0] == CANNOT_DECIDE)
    return "".join(f" {reason[:1].upper()}{reason[1:]}." for reason in reasons)


def drawn(compared: Sequence[Comparison]) -> Figure:
    """Ours with its interval, the published value as a tick."""
    rows = []
    for c in compared:
        e = c.ours
        value = Estimate(e.value, e.low, e.high, e.seeds, e.items, runs=e.runs) if e.mean else None
        rows.append(Dot(f"{c.what} ({c.published['method']})", "dLM", value, c.published["value"]))
    return dots(rows, "", "points of accuracy", 0.0, beside="published")


def table(compared: Sequence[Comparison]) -> pd.DataFrame:
    """One row per published comparison."""
    rows = []
    for c in compared:
        (verdict, _), p = c.verdict, c.published
        rows.append(
            {
                "comparison": c.what,
                "published by": p["method"] + "*" * (not p["read"]),
                "points": p["value"],
                "here": effect_text(c.ours).replace(" points", ""),
                "verdict": verdict,
                "the numbers": p["numbers"],
                "at": f"{p['scale']}; {p['budget']}",
                "source": p["source"],
            }
        )
    return pd.DataFrame(rows)


def ar_loss(results: Results) -> Effect:
    """What an AR loss on a token-causal clean stream adds, over the token shift and the loss weight."""
    rows = final_evaluation(results.of("evaluations", FACTORIAL))
    rows = rows.assign(auxiliary_name=rows["auxiliary_name"].where(rows["auxiliary_name"].notna(), "none"))
    effects = contested_factorial.crossings(rows).get("AR loss on the clean stream", [])
    main = next((e for e in effects if e.what.startswith("auxiliary (")), None)
    return main or Effect("AR loss on the clean stream", missing=(FACTORIAL,))


def small_block(results: Results) -> Effect:
    """Training blocks of 4 against blocks of 32, each decoded with its own, at one token per step."""
    rows, parent = final_evaluation(results.of("evaluations", BLOCKS)), parent_row(results, BLOCKS)
    sides = [rows[rows["block_size"] == size] if len(rows) else rows for size in (4, 32)]
    both = pd.concat(sides) if all(map(len, sides)) else rows.head(0)
    short = with_several_blocks(both, "block_size", parent)
    missing = [f"{BLOCKS} with blocks of 4 and 32"]
    obstacle = too_few_blocks(short, "block_size", 2, parent, "were trained")
    return accuracy_effect(*sides, "block 4 − block 32", missing, obstacle=obstacle, sweep=BLOCKS)


def monotone(results: Results, attention: str) -> Effect:
    """Noise that grows from block to block against independent noise, under one attention pattern."""
    names = [f"attention={attention}, noise_level={level}" for level in ("monotone", "uniform")]
    return compare(results, MONOTONE, *names, "monotone − independent noise")


OURS: dict[str, Callable[[Results], Effect]] = {
    "ar loss": ar_loss,
    "small block": small_block,
    "monotone, noisy context": partial(monotone, attention="block_noisy"),
    "monotone, clean context": partial(monotone, attention="block"),
    "MARS − BD3-LM": partial(compare, sweep=RECIPES, better="mars", worse="bd3lm"),
    "MARS − AR control": partial(compare, sweep=RECIPES, better="mars", worse="ar_control"),
}
