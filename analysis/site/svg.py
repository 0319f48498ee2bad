"""The little SVG that the pictures of the documentation need. Written by hand, so that the same picture is the same
bytes everywhere, and readable in a light and in a dark page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

INK, DARK_INK = "#1f2328", "#e6e6e6"
STYLE = (
    f"text{{font:12px sans-serif;fill:{INK}}}.ink{{stroke:{INK};fill:none}}"
    f"@media(prefers-color-scheme:dark){{text{{fill:{DARK_INK}}}.ink{{stroke:{DARK_INK}}}}}"
)


def document(title: str, width: int, height: int, parts: Iterable[str]) -> str:
    """A whole SVG file of `width` x `height` pixels; `title` is what a screen reader says."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img">'
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


def text(x: int, y: int, words: str, anchor: str = "middle", turned: bool = False) -> str:
    """Words at (x, y); `turned` reads from bottom to top."""
    turn = f' transform="rotate(-90 {x} {y})"' if turned else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{turn}>{escape(words)}</text>'


def path(steps: str, width: float = 1, opacity: float = 1) -> str:
    """A line in the colour of the page's text."""
    return f'<path class="ink" stroke-width="{width:g}" opacity="{opacity:g}" d="{steps}"/>'


def box(x: int, y: int, width: int, height: int, colour: str, opacity: float = 1, radius: int = 0) -> str:
    """A filled rectangle."""
    round_ = f' rx="{radius}"' if radius else ""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}"{round_} fill="{colour}" opacity="{opacity:g}"/>'
