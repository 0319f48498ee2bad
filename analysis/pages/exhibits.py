"""The tables and plots of an artefact as values, and the text of a table's cells.

`analysis.pages.render` renders them alike for every artefact in the terminal, HTML, Markdown and LaTeX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.evidence.stats import Estimate

# Measure → its column heading in tables.
MEASURES = {
    "accuracy": "accuracy %",
    "code": "code %",
    "maths": "maths %",
    "symbols": "symbols %",
    "sequential": "sequential %",
    "parallel": "parallel %",
    "right_steps": "right steps %",
    "cloze": "cloze %",
    "tpf": "TPF",
    "nfe": "NFE",
    "threshold": "threshold",
    "tokens_per_second": "tokens/s",
    "tokens_per_row": "tokens/row",
    "repetitive": "repetitive %",
    "empty": "empty %",
    "endless": "endless %",
    "bits_per_byte": "bits/byte",
    "train_flops": "TFLOP",
}


def headings(*measures: str) -> dict[str, str]:
    """Measure → column heading, in this order, for `analysis.evidence.compare.by_point`."""
    return {measure: MEASURES[measure] for measure in measures}


@dataclass(frozen=True)
class Table:
    """A table whose cells are text, numbers, booleans or `Estimate`s. The columns of `frame` are the printed headings;
    `digits` are those after the decimal point, for all numbers or by column. The page offers what is `aside` only to
    download; Markdown and LaTeX print it."""

    frame: pd.DataFrame
    caption: str
    digits: int | dict[str, int] = 1
    aside: bool = False

    def cell(self, value: Any, column: str) -> Cell:
        digits = self.digits if isinstance(self.digits, int) else self.digits.get(column, DIGITS)
        return cell(value, digits)

    @property
    def cells(self) -> list[list[Cell]]:
        """The cells of every row."""
        columns = list(self.frame.columns)
        rows = self.frame.itertuples(index=False, name=None)  # each column with its own type: 8, not 8.0
        return [[self.cell(v, c) for v, c in zip(row, columns, strict=True)] for row in rows]


@dataclass(frozen=True)
class Plot:
    """One or more panels, each its own figure so that a narrow page can stack them. `name` is the stem of the files."""

    name: str
    panels: tuple[Figure, ...]
    caption: str
    alt: str


Exhibit = Table | Plot


@dataclass(frozen=True)
class Cell:
    """A cell's text, with its interval and counts in small type, the interval alone as `brief`, and the ids of the
    `runs` behind it."""

    text: str
    small: str = ""
    is_text: bool = False
    brief: str = ""
    runs: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """Text and small print on one line."""
        return f"{self.text} ({self.small})" if self.small else self.text


def cell(value: Any, digits: int = 1) -> Cell:
    """Format a value; "–" if missing."""
    if isinstance(value, Estimate):
        return Cell(number(value.mean, digits), spread(value, digits), brief=brief(value, digits), runs=value.runs)
    if isinstance(value, str):
        return Cell(value, is_text=True)
    if value is None or pd.isna(value):
        return Cell("–")
    if isinstance(value, bool):
        return Cell("yes" if value else "no", is_text=True)
    return Cell(f"{value:,}" if isinstance(value, int) else number(value, digits))


def number(value: float, digits: int) -> str:
    """Format a number with `digits` decimals, thousands separators and a true minus; "–" for NaN."""
    return "–" if math.isnan(value) else f"{value:,.{digits}f}".replace("-", "−")


def spread(value: Estimate, digits: int) -> str:
    """The interval (omitted if it rounds to zero width) and counts: `58.1 to 67.9; 3 × 360`, seeds × items."""
    low, high = number(value.low, digits), number(value.high, digits)
    interval = "" if low == high else f"{low} to {high}"
    counted = f"{value.seeds} × {value.n:,}" if value.n else f"{value.seeds} seed{'s' if value.seeds > 1 else ''}"
    return "; ".join(part for part in (interval, counted) if part)


def brief(value: Estimate, digits: int) -> str:
    """The interval in one word, `±4.9`, or `58.0–67.9` where it is lopsided; "" where it rounds to zero width."""
    if math.isnan(value.low) or number(value.low, digits) == number(value.high, digits):
        return ""
    if abs(value.high + value.low - 2 * value.mean) < 0.5 * 10.0**-digits:
        return f"±{number(value.high - value.mean, digits)}"
    return f"{number(value.low, digits)}–{number(value.high, digits)}"


DIGITS = 1  # decimals by default
CELLS = (
    "Intervals in tables and figures are at 95%: over seeds and items for what is measured on items, else over seeds "
    "(for one seed, over items alone)."
)

NAMES = {"humaneval": "HumanEval", "humaneval_plus": "HumanEval+", "mbpp": "MBPP", "mbpp_plus": "MBPP+"}
NAMES |= {"gsm8k": "GSM8K", "minerva_math": "Minerva Math", "avg": "average", "lr": "learning rate"}
NAMES |= {"tpf": "TPF", "tps": "tokens/s", "mmlu": "MMLU"}


def paper_table(section: dict[str, Any], caption: str, digits: int | dict[str, int] = 2, aside: bool = False) -> Table:
    """A table as printed in the paper, from its section in `analysis/paper.yaml`."""
    frame = pd.DataFrame(section["rows"], columns=[NAMES.get(c, c) for c in section["columns"]])
    return Table(frame, f"The paper's: {caption}.", digits, aside)
