"""The paper's claims, each held against our runs: agrees, disagrees, undecided, or no runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import ModuleType
from typing import Any

import pandas as pd
import yaml

from analysis.evidence.stats import DISAGREES, Effect, overall
from analysis.pages.exhibits import Table
from analysis.tables.results import Results


@dataclass(frozen=True)
class Claim:
    """What the paper says, what was found, and the verdict over all its comparisons."""

    id: str
    artefact: str
    text: str
    effects: tuple[Effect, ...]
    tested: str = ""

    @property
    def verdict(self) -> str:
        return overall(self.effects)

    @property
    def cause(self) -> str:
        """Why our result is another than the paper's, as far as it was tested; nothing where it is not."""
        return self.tested if self.verdict == DISAGREES else ""


def paper_numbers() -> dict[str, Any]:
    """What the paper prints, from `analysis/paper.yaml`."""
    return read("paper.yaml")


def read(name: str) -> dict[str, Any]:
    """A YAML of this package."""
    return yaml.safe_load(resources.files("analysis").joinpath(name).read_text(encoding="utf-8")) or {}


def evaluate_claims(results: Results, paper: dict[str, Any], modules: Mapping[str, ModuleType]) -> list[Claim]:
    """Every claim of the paper, by the function of its artefact that has its id as its name."""
    causes = read("causes.yaml")
    return [
        Claim(c["id"], c["from"], c["text"], tuple(decide(results, paper)), causes.get(c["id"], ""))
        for c in paper["claims"]
        for decide in [getattr(modules[c["from"]], c["id"])]
    ]


def shown(effect: Effect) -> str:
    """An effect with its interval: `+9.5 points (+3.1 to +15.8)`."""
    if not effect.seeds:
        return "–"
    unit = effect.shown[effect.shown.index("}") + 1 :]
    bare = effect.shown.removesuffix(unit)
    interval = "" if pd.isna(effect.low) else f" ({bare.format(effect.low)} to {bare.format(effect.high)})"
    return (effect.shown.format(effect.value) + interval).replace("-", "−")


def claim_table(claims: list[Claim]) -> Table:
    """Claims and their comparisons, a row each, for Markdown, LaTeX and the terminal."""
    rows = [
        {
            "claim": claim.text if first else "",
            "verdict": claim.verdict if first else "",
            "comparison": effect.what,
            "here (95 %)": shown(effect),
            "paper": effect.printed,
            "found": effect.verdict,
            "from": effect.why,
        }
        for claim in claims
        for first, effect in zip([True] + [False] * len(claim.effects), claim.effects, strict=False)
    ]
    return Table(pd.DataFrame(rows), RULE)


RULE = (
    "A comparison expects its effect above 0. It is decided where the 95 % interval leaves out 0 and there are at "
    "least three seeds, else undecided. Accuracy: paired by item and seed, items by the bootstrap, seeds by Student's "
    "t; everything else: Student's t over seeds. Not corrected for the number of comparisons. A claim agrees where all "
    "its comparisons do, and disagrees where one does."
)
