"""Who sees whom under the attention patterns that are compared, drawn from the predicates that train them."""

from __future__ import annotations

from analysis.pages.exhibits import Exhibit, Plot
from analysis.pages.grids import mask
from analysis.site.mask_pictures import BLOCK, LENGTH, patterns
from analysis.tables.results import Results

PLACE = 5
TITLE = "Figure 2a–d: attention patterns"
TOPIC = "attention"
SWEEPS = ("table1_attention",)
# The paper's panels: option of `attention` → title.
PANELS = {
    "ar": "(a) autoregressive",
    "bidir": "(b) fully bidirectional",
    "block_noisy": "(c) block-wise, noisy context",
    "block": "(d) block-wise, clean context",
}
SAID = (
    f"The paper's patterns: attention in training over one document of {LENGTH} tokens in blocks of {BLOCK}. A row of "
    "cells shows what one position reads. With clean context the noisy copy, which is scored, reads the clean copy of "
    "the blocks before."
)


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    by_name = patterns()
    panels = tuple(mask(by_name[name], title) for name, title in PANELS.items())
    return [Plot("figure2_attention", panels, SAID, "The attention patterns of the comparison as masks")]
