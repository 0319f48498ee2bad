"""A table as the page prints it: narrow cells with the rest on hover, rows with anchors, and all of it to download."""

from __future__ import annotations

import csv
import io
from typing import Any
from urllib.parse import quote

from analysis.evidence.stats import Estimate
from analysis.pages.exhibits import Cell, Table
from analysis.pages.render import text_columns

SENTENCES = "found"  # the only column of a table of sentences, which is printed as a list


def table_context(table: Table, anchor: str) -> dict[str, Any]:
    """The template variables of a table whose rows have the anchors `anchor-1`, `anchor-2`, …"""
    text, cells = text_columns(table), table.cells
    first, *rest = table.caption.split(". ")
    return {
        "anchor": anchor,
        "head": list(zip(map(str, table.frame.columns), text, strict=True)),
        "rows": [row_context(row, f"{anchor}-{i}") for i, row in enumerate(cells, 1)],
        "printed": not table.aside,
        "sentences": list(table.frame.columns) == [SENTENCES],
        "title": first.rstrip("."),
        "caption": ". ".join(rest),
        "csv": "data:text/csv;charset=utf-8," + quote(as_csv(table)),
    }


def row_context(cells: list[Cell], anchor: str) -> dict[str, Any]:
    """A row with its anchor, a label (its first text) and the runs behind it."""
    label = next((c.text for c in cells if c.is_text and len(c.text) < 40 and c.text not in ("", "yes", "no")), "")
    runs = tuple(dict.fromkeys(run for c in cells for run in c.runs))
    return {"id": anchor, "cells": cells, "label": label or cells[0].text, "runs": runs}


def as_csv(table: Table) -> str:
    """The table with every estimate in full: mean, ends of the interval, seeds, items."""
    wide = [any(isinstance(v, Estimate) for v in table.frame[c]) for c in table.frame.columns]
    head = [
        name
        for column, is_wide in zip(map(str, table.frame.columns), wide, strict=True)
        for name in (
            (column, *(f"{column}: {of}" for of in ("low", "high", "seeds", "items"))) if is_wide else (column,)
        )
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in table.frame.itertuples(index=False, name=None):
        writer.writerow([part for value, is_wide in zip(row, wide, strict=True) for part in parts(value, is_wide)])
    return out.getvalue()


def parts(value: Any, is_wide: bool) -> list[Any]:
    """The fields of a cell: five of a column with estimates, else one."""
    if isinstance(value, Estimate):
        return [*(f"{x:.6g}" for x in (value.mean, value.low, value.high)), value.seeds, value.n or ""]
    return [value, *[""] * 4] if is_wide else [value]
