"""The dLM with its exact cache against a bidirectional dLM with Fast-dLLM's approximate caches."""

from __future__ import annotations

from analysis.evidence.compare import by_point
from analysis.pages.exhibits import Exhibit, Plot, Table, headings
from analysis.pages.plots import frontier
from analysis.tables.results import Results

PLACE = 130
TITLE = "Figure 10: exact against approximate caching"
TOPIC = "decoding"
SWEEPS = ("figure10_approximate_cache",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = results.of("evaluations", SWEEP)
    rows = rows[rows["evaluation"].isin(["plain", "approximate"])].sort_values(["point", "decoder", "threshold"])
    rows = rows.assign(line=rows["label"] + ", " + rows["decoder"].astype(str))
    measures = headings("accuracy", "tpf", "nfe", "tokens_per_second")
    table = by_point(rows, measures, ("line", "setting")).rename(columns={"line": "model and decoding"})
    panels = (
        frontier(rows, "tokens_per_second", "line", "setting", "", "tokens/s"),
        frontier(rows, "nfe", "line", "setting", "", "forwards per answer (NFE)"),
    )
    caption = (
        "A forward of an approximate cache may read one block or the whole canvas, so that NFE alone does not tell its "
        "cost; tokens/s does."
    )
    alt = "Accuracy against throughput with exact and approximate caches"
    return [
        Plot("figure10_approximate_cache", panels, caption, alt),
        Table(table, "Every decoding setting.", {"TPF": 2, "tokens/s": 0}, aside=True),
    ]
