"""Tables of the cards and pages that are written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: Sequence[str] | None = None) -> str:
    """A GitHub table of cells that are Markdown themselves; a bar in one does not end it. `align` is the line below the
    header, `:--` or `--:` for each column; by default it says nothing.

    Not pandas' `to_markdown`: tabulate pads cells to the width of their column, so one new row would change them all.
    """
    lines = [header, align or ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(unbroken, line)) + " |" for line in lines)


def unbroken(cell: str) -> str:
    """A cell with those of its bars escaped that are not yet."""
    return re.sub(r"(?<!\\)((?:\\\\)*)\|", r"\1\\|", cell)
