"""Markdown tables for model cards and pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: Sequence[str] | None = None) -> str:
    """A GitHub table. Cells are Markdown; bars in them are escaped. `align` has `:--` or `--:` for each column, by
    default neither.

    pandas' `to_markdown` would pad cells to the width of their column, so that one new row changes all lines.
    """
    lines = [header, align or ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(with_bars_escaped, line)) + " |" for line in lines)


def with_bars_escaped(cell: str) -> str:
    """A cell in which every bar that is not escaped yet is escaped."""
    return re.sub(r"(?<!\\)((?:\\\\)*)\|", r"\1\\|", cell)
