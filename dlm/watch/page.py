"""The page that plays traces: one HTML file with its style, its script and its data, which asks the network for
nothing. Without races it is the page of the server, which has a form for prompts."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dlm.watch.trace import Race

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("replay.js", "dom.js", "lane.js", "chart.js", "panels.js", "player.js", "live.js", "attach.js", "main.js")
# Inside a script element only "<" can end the text; in JSON it stands in strings alone, where an escape means the same.
ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


def page(races: Sequence[Race] = ()) -> str:
    """The page of these races."""
    parts = {
        "style": (STATIC / "style.css").read_text(encoding="utf-8"),
        "script": "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "races": embedded([asdict(race) for race in races]),
    }
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    for name, content in parts.items():  # the races last: what is in them is not looked at again
        text = text.replace("{{ " + name + " }}", content)
    return text


def embedded(value: object) -> str:
    """JSON in ASCII that any text may be in, for a script element of HTML."""
    return json.dumps(value, allow_nan=False).translate(ESCAPES)


def require_writable(path: Path, option: str) -> None:
    """Raises `ValueError` if no file can be written there; `option` is what gave the path."""
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file in it, as {option}={path / 'answer.html'}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{option} {path} is in a folder that does not exist: make {path.absolute().parent} first")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ValueError(f"{option} {path} may not be written: choose another place")
