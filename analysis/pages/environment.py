"""The Jinja environment of the pages' templates."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from analysis.pages import render
from analysis.pages.claims import effect_text
from analysis.pages.forest import mark, outcome, paper_text, percent_text


def typeset(value: Any) -> Any:
    """Percent signs close to their numbers, in whatever a template prints."""
    return re.sub(r"(?<=\d) (?=\\?%)", "", value) if type(value) is str else value


def environment() -> Environment:
    """The environment with the filters of all templates."""
    templates = Environment(
        loader=PackageLoader("analysis", "templates"),
        autoescape=select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=typeset,
    )
    templates.filters |= {"latex": render.latex, "md": render.markdown, "effect_text": effect_text}
    templates.filters |= {"to_latex": render.to_latex, "to_markdown": render.to_markdown}
    templates.filters |= {
        "slug": lambda text: text.replace(" ", "-"),
        "capitalize_first": lambda t: t[:1].upper() + t[1:],
    }
    templates.filters |= {"mark": mark, "outcome": outcome, "percent": percent_text, "paper_text": paper_text}
    return templates
