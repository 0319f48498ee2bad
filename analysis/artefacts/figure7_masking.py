"""How often each position of a block is hidden, by masking scheme."""

from __future__ import annotations

from analysis.pages.exhibits import Exhibit, Plot
from analysis.pages.plots import lines
from analysis.tables.results import Results

PLACE = 70
TITLE = "Figure 7: masking probability per position"
TOPIC = "masking"
SWEEPS = ("table2_masking", "learned_masking")


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = results.of("positions", SWEEPS)
    rows = rows[rows["quantity"] == "masked"].drop_duplicates(["masking_name", "position"])
    if rows.empty:
        return []
    figure = lines(rows, "position", "value", "label", "", "position in the block", "probability of being masked")
    caption = (
        f"Mean over the noise levels of training, from {rows['n'].min():,.0f} blocks drawn with the scheme itself: a "
        "property of the scheme, not of a trained model."
    )
    return [Plot("figure7_masking", (figure,), caption, "Masking probability over position in the block by scheme")]
