"""The colour and marker of every condition, the same in all figures of the report.

`NAMED` is the one table of conditions. What has an order (block sizes, budgets, parent sizes, …) takes its colour from
a scale instead. A condition that neither knows has a colour made from its name, so it keeps it, too.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from matplotlib.colors import to_hex

PAPER, PARENT, MUTED = "#808890", "#7a828b", "#808890"  # greys that show on a light and on a dark page
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# A verdict's colour; the page's style sheet has the same names.
VERDICTS = {"agrees": "#2f9e6e", "disagrees": "#d1495b", "undecided": "#b8951f"}

# Condition → (colour, marker). Mid-tones. Names of one condition in several artefacts share an entry.
BASE, SHIFTED, BIDIR = ("#2f7fc1", "o"), ("#4aa3b5", "s"), ("#d9762b", "^")
NAMED: dict[str, tuple[str, str]] = {
    "AR parent": (PARENT, "s"),
    "parent": (PARENT, "s"),
    "AR control": ("#a0703c", "D"),
    "from random weights": ("#b06f8f", "X"),
    # attention, context, shift, LoRA (Table 1)
    "bidirectional, token shift": ("#b8951f", "v"),
    "bidirectional": BIDIR,
    "block-wise, noisy context, token shift": ("#c4529a", "D"),
    "block-wise, noisy context, token shift, doubled tokens": ("#d1495b", "P"),
    "block-wise, clean context, token shift": SHIFTED,
    "block-wise, clean context": BASE,
    "as g, LoRA of rank 16": ("#8a6fd1", "X"),
    "as g, LoRA of rank 64": ("#5e4fb3", "*"),
    "dlm": BASE,
    "dLM": BASE,
    "without": BASE,
    "with the shift": SHIFTED,
    # the ladder (Table 5), each rung the condition above that it is
    "bidirectional (Dream's setting)": ("#b8951f", "v"),
    "+ block-wise with clean context": SHIFTED,
    "+ remove token shift": BASE,
    "+ position-dependent masking": ("#2f9e6e", "D"),
    "+ more tokens": ("#1f6f6b", "P"),
    # masking
    "uniform": BASE,
    "right to left": ("#d1495b", "X"),
    "half-life 0.25": ("#9bbf3b", "^"),
    "half-life 0.1": ("#2f9e6e", "D"),
    "half-life 0.05": ("#1f6f6b", "v"),
    "learned": ("#c4529a", "P"),
    # recipes
    "Efficient-DLM": BASE,
    "Dream": ("#b8951f", "v"),
    "DiffuLLaMA": BIDIR,
    "BD3-LM": ("#5e4fb3", "*"),
    "SDAR": SHIFTED,
    "Fast-dLLM v2": ("#d1495b", "P"),
    "LLaDA 2.0": ("#9bbf3b", "^"),
    "Nemotron-Labs-Diffusion": ("#2f9e6e", "D"),
    "TiDAR": ("#c4529a", "X"),
    "I-DLM": ("#8a6fd1", "s"),
    "MARS": ("#1f6f6b", "v"),
    "D2F from AR": ("#e0699a", "o"),
    "D2F after Dream": ("#e0699a", "^"),
    "DMax from AR": ("#6b9bd8", "s"),
    "DMax after SDAR": ("#6b9bd8", "D"),
    "REPR-ALIGN": ("#7d8c2a", "P"),
    "OPDLM": ("#a65a3a", "X"),
}


DECODINGS = {"threshold": "o", "ar": "s", "lookup": "D", "dualcache": "^", "prefixcache": "v", "oracle": "*"}


@dataclass(frozen=True)
class Scale:
    """A condition whose `pattern` finds a number: the colour is `map` at where `place` puts it, from 0 to 1."""

    pattern: re.Pattern[str]
    map: str
    place: Callable[[float], float]


def logarithmic(low: float, high: float) -> Callable[[float], float]:
    """Where a number lies between two others on a logarithmic axis, from 0 to 1."""
    return lambda value: min(1.0, max(0.0, math.log(max(value, low) / low) / math.log(high / low)))


SCALES = (
    Scale(re.compile(r"^block (?P<of>[\d.]+)$"), "viridis", logarithmic(2, 64)),
    Scale(re.compile(r"^(?P<of>[\d.]+)M tokens$"), "plasma", logarithmic(0.2, 16)),
    Scale(re.compile(r"batch (?P<of>[\d.]+)$"), "viridis", logarithmic(1, 64)),
    Scale(re.compile(r"(?P<of>[\d.]+)M(?: parameters)?$"), "cool", logarithmic(0.2, 20)),
)
INNER = (0.12, 0.82)  # the part of a colour map that shows on a light and on a dark page


def style(name: str) -> tuple[str, str]:
    """The colour and the marker of a condition. Where `name` goes on with how it is decoded (`Dream, lookup`), the
    marker is that of the decoding."""
    for scale in SCALES:
        if match := scale.pattern.search(name):
            at = INNER[0] + (INNER[1] - INNER[0]) * scale.place(float(match["of"]))
            shift = zlib.crc32(name.replace(match["of"], "").encode())
            return to_hex(matplotlib.colormaps[scale.map](at)), MARKERS[(shift + round(12 * at)) % len(MARKERS)]
    for known in sorted(NAMED, key=len, reverse=True):
        if match := re.match(rf"(?:[a-z]  )?{re.escape(known)}(?:, (?P<decoding>.+))?$", name):
            colour, marker = NAMED[known]
            return colour, marker_of(match["decoding"]) if match["decoding"] else marker
    palette = sorted({colour for colour, _ in NAMED.values()} - {PARENT})
    return palette[zlib.crc32(name.encode()) % len(palette)], marker_of(name)


def marker_of(name: str) -> str:
    """A marker that depends on nothing but the name."""
    return DECODINGS.get(name.lower(), MARKERS[zlib.crc32(name.encode()) % len(MARKERS)])
