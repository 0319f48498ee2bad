"""How often each position of a block is hidden, by masking scheme."""

from __future__ import annotations

from analysis.pages.exhibits import Exhibit, Plot
from analysis.pages.plots import lines
from analysis.tables.results import Results

PLACE = 70
TITLE = "Figure 7: masking probability per position"
SWEEPS = ("table2_masking", "learned_masking")


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    found = results.of("positions", SWEEPS)
    found = found[found["quantity"] == "masked"].drop_duplicates(["masking_name", "position"])
    if found.empty:
        return []
    figure = lines(found, "position", "value", "masking_name", "", "position in the block", "probability to be hidden")
    said = f"Mean over the noise levels of training, from {found['n'].min():,.0f} blocks drawn with the scheme itself: "
    said += "a property of the scheme, not of a trained model."
    return [Plot("figure7_masking", (figure,), said, "Masking probability over position in the block by scheme")]
