"""The paper's claims, each tested on our runs: agrees, disagrees, undecided, or no runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import ModuleType
from typing import Any

import pandas as pd
import yaml

from analysis.evidence.stats import DISAGREES, Effect, overall_verdict
from analysis.pages.exhibits import Table
from analysis.tables.results import Results


@dataclass(frozen=True)
class Claim:
    """A claim of the paper with its comparisons on our runs. `tested` is the tested cause of a disagreement."""

    id: str
    artefact: str
    text: str
    effects: tuple[Effect, ...]
    tested: str = ""

    @property
    def verdict(self) -> str:
        return overall_verdict(self.effects)

    @property
    def cause(self) -> str:
        """The likely cause of a disagreement with the paper, as far as it was tested; "" without one."""
        return self.tested if self.verdict == DISAGREES else ""


def paper_numbers() -> dict[str, Any]:
    """The paper's numbers, settings and claims, from `analysis/paper.yaml`."""
    return read_yaml("paper.yaml")


def read_yaml(name: str) -> dict[str, Any]:
    """The content of a YAML file in `analysis/`; {} if it is empty."""
    return yaml.safe_load(resources.files("analysis").joinpath(name).read_text(encoding="utf-8")) or {}


def evaluate_claims(results: Results, paper: dict[str, Any], modules: Mapping[str, ModuleType]) -> list[Claim]:
    """Evaluate every claim of the paper with the function of its artefact's module that is named like its id."""
    causes = read_yaml("causes.yaml")
    return [
        Claim(c["id"], c["from"], c["text"], tuple(decide(results, paper)), causes.get(c["id"], ""))
        for c in paper["claims"]
        for decide in [getattr(modules[c["from"]], c["id"])]
    ]


def effect_text(effect: Effect) -> str:
    """An effect with its interval, `+9.5 points (+3.1 to +15.8)`; – without a value."""
    if not effect.seeds:
        return "–"
    unit = effect.number_format[effect.number_format.index("}") + 1 :]
    bare = effect.number_format.removesuffix(unit)
    interval = "" if pd.isna(effect.low) else f" ({bare.format(effect.low)} to {bare.format(effect.high)})"
    return (effect.number_format.format(effect.value) + interval).replace("-", "−")


def claim_table(claims: list[Claim]) -> Table:
    """One row per comparison of every claim, for Markdown, LaTeX and the terminal."""
    rows = [
        {
            "claim": claim.text if first else "",
            "verdict": claim.verdict if first else "",
            "comparison": effect.what,
            "here (95 %)": effect_text(effect),
            "paper": effect.in_paper,
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
