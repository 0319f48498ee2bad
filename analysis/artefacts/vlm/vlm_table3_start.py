"""A conversion from a vision-language parent, and one from a language model that was given eyes first."""

from __future__ import annotations

from analysis.artefacts.vlm.vlm_recipes import DIGITS, MEASURES
from analysis.evidence.compare import by_point, compare, final_evaluation
from analysis.evidence.effect import Effect
from analysis.pages.exhibits import Exhibit, Table, paper_table
from analysis.tables.results import Results

PLACE = 40
TITLE = "DiffusionVL, Table 3: where the conversion starts"
TOPIC = "parent"
SWEEPS = ("vlm_table3_start", "vlm_connector")
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = final_evaluation(results.of("evaluations", SWEEPS))
    return [
        Table(by_point(rows, MEASURES, ("label",)), "At one token per step; the connector by itself is AR.", DIGITS),
        paper_table(paper["table3_start"], "from Qwen2.5-7B and SigLIP2, on the same data", 1),
    ]


def a_language_model_is_a_start(results: Results, paper: dict) -> list[Effect]:
    """What starting from a language model costs against the vision-language parent, at the same second stage."""
    return [compare(results, SWEEP, "from_vlm", "from_lm", "from the AR VLM − from the AR LM", id="start")]
