"""Renders exhibits as terminal tables, Markdown, LaTeX, SVG and PDF. The report's template renders HTML."""

from __future__ import annotations

import html
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table as RichTable
from rich.text import Text

from analysis.pages import tips
from analysis.pages.exhibits import Cell, Plot, Table
from dlm.markdown import table as markdown_table
from dlm.runs.storage import write_atomically

Command = Callable[[Sequence[str]], str]  # run ids → the command that makes them

matplotlib.use("Agg")
INK = "#1c2024"  # replaced by the colour of the page's text in SVGs
DARK_INK = "#e6e8ea"
STYLE = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
LATEX = str.maketrans(
    {c: rf"\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"‖": r"$\Vert$", "Δ": r"$\Delta$", "−": r"$-$", "×": r"$\times$", "≈": r"$\approx$", "→": r"$\to$"}
    | {"λ": r"$\lambda$", "τ": r"$\tau$", "β": r"$\beta$", "≥": r"$\geq$", "≤": r"$\leq$", "–": "--"}
    | {"…": r"\ldots{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "’": "'"}
    | {"·": r"$\cdot$", "²": r"$^2$", "±": r"$\pm$", "″": "''", "∑": r"$\sum$"}
)


def latex(text: str) -> str:
    """Escape text for LaTeX. Characters outside ASCII without an entry in `LATEX` are dropped."""
    return "".join(c for c in str(text).translate(LATEX) if ord(c) < 128)


def markdown(text: str) -> str:
    """Text for a cell of a Markdown table."""
    escaped = re.sub(r"([\\|*_`\[\]$])", r"\\\1", str(text)).replace("\n", " ")
    return escaped.replace("<", "&lt;").replace(">", "&gt;")


def to_markdown(table: Table) -> str:
    """A GitHub table."""
    head = [markdown(c) for c in table.frame.columns]
    align = [":--" if text else "--:" for text in text_columns(table)]
    body = [[markdown(c.line) for c in row] for row in table.cells]
    return markdown_table(head, body, align)


def to_latex(table: Table) -> str:
    """A booktabs tabular with intervals in small type."""
    body = [[latex_cell(c) for c in row] for row in table.cells]
    frame = pd.DataFrame(body, columns=[latex(c) for c in table.frame.columns])
    align = "".join("l" if text else "r" for text in text_columns(table))
    return frame.style.hide(axis="index").to_latex(column_format=align, hrules=True)


def latex_cell(cell: Cell) -> str:
    small = rf" {{\tiny ({latex(cell.small)})}}" if cell.small else ""
    return latex(cell.text) + small


def to_terminal(table: Table, title: str = "") -> RichTable:
    """A `rich` table with intervals under the values."""
    terminal = RichTable(title=title or None, caption=table.caption, title_justify="left", caption_justify="left")
    for name, text in zip(table.frame.columns, text_columns(table), strict=True):
        terminal.add_column(str(name), justify="left" if text else "right")
    for row in table.cells:
        terminal.add_row(*(Text(c.text + (f"\n{c.small}" if c.small else "")) for c in row))
    return terminal


def text_columns(table: Table) -> list[bool]:
    """Whether each column holds text, which is aligned left."""
    rows = table.cells
    return [any(row[i].is_text for row in rows) for i in range(len(table.frame.columns))]


def svg(figure: Figure, salt: str, command: Command = lambda runs: "") -> str:
    """Render a figure as inline SVG, deterministically, with an aspect ratio but no size, in the page's text colour.

    `salt` makes its ids differ from those of other figures on the page. Tips become titles, which a browser shows over
    the point, with the `command` that makes their runs.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(rf'<g id="{tips.MARK}([^"]*)">', lambda match: titled(match[1], command), text)
    head, body = text.split(">", 1)
    return re.sub(r' (?:width|height)="[^"]*"', "", head) + ">" + body


def titled(escaped: str, command: Command) -> str:
    """The opening tag of a group with its tip, which is escaped, as its title."""
    made_by = command(tips.runs_in(html.unescape(escaped)))
    return f'<g class="tip"><title>{escaped}{chr(10) * bool(made_by)}{html.escape(made_by)}</title>'


def standalone(inline: str) -> str:
    """Turn inline SVG into the content of a standalone file that follows the reader's light or dark mode, without the
    tips, which no image shows."""
    inline = re.sub(r'<g class="tip"><title>.*?</title>', "<g>", inline, flags=re.DOTALL)
    style = f"<style>svg{{color:{INK}}}@media(prefers-color-scheme:dark){{svg{{color:{DARK_INK}}}}}</style>"
    head = inline.index(">") + 1
    return inline[:head] + style + inline[head:]


def save_plot(plot: Plot, folder: Path, command: Command = lambda runs: "") -> list[str]:
    """Write every panel to `folder` as `name-1.svg` and `name-1.pdf`; returns the inline SVGs. `command` gives the
    command that makes runs."""
    folder.mkdir(parents=True, exist_ok=True)
    inline_svgs = []
    for i, figure in enumerate(plot.panels, 1):
        name = f"{plot.name}-{i}"
        inline = svg(figure, name, command)
        write_atomically(folder / f"{name}.svg", standalone(inline))
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        with matplotlib.rc_context(STYLE):
            figure.savefig(temporary, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
        temporary.replace(folder / f"{name}.pdf")
        inline_svgs.append(inline)
    return inline_svgs
