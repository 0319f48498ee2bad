"""Quotes command-line arguments for Hydra. The shell has removed its quotes, and Hydra would parse `=`, `,`, blanks and
letters beyond ASCII in a text or a path as its own grammar."""

from __future__ import annotations

import re
from pathlib import Path

from omegaconf import ListConfig

# Options whose last name is one of these hold a path.
PATHS = ("path", "html", "runs_dir", "run", "to", "out", "policy", "trace", "tokenizer", "dllm")
# Options that are a text or a list of texts.
TEXTS = ("prompt", "stop", "system", "image")
# Hydra takes a value of these characters literally. A backslash is the user's own escape.
UNQUOTED = re.compile(r"[A-Za-z0-9_./:+%*@?|\\-]*")


def with_path_quoted(argument: str, swept: bool) -> str:
    """Quote the value of a path option for Hydra, as in `data.path=my text.txt`. In a sweep (`swept`), `a,b` stays two
    values unless a file of that name exists."""
    key, _, value = argument.partition("=")
    is_path = key.rpartition(".")[2].lstrip("+") in PATHS
    if not is_path or UNQUOTED.fullmatch(value) or value[:1] in ("'", '"', "[", "{") or "\\" in value or "${" in value:
        return argument
    if swept and set(value) & set(",(") and not Path(value).expanduser().exists():
        return argument
    return f"{key}={quoted(value)}"


def quoted(value: str) -> str:
    """The string literal of Hydra's grammar whose value is the given text."""
    value = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + (match[2] and "\\'"), value)
    return f"'{value}'".replace("${", "\\${")  # not an interpolation


def literal(argument: str) -> str:
    """Quote the value of a text option for Hydra, as in `prompt=any, text=`, so that a shell's quotes suffice. Lists
    and quoted strings stay as they are."""
    key, _, value = argument.partition("=")
    if key not in TEXTS or value[:1] in ("'", '"', "["):
        return argument
    return f"{key}={quoted(value)}"


def texts(value: str | ListConfig | None) -> list[str]:
    """The texts of an option that is one text or a list; an unset option gives [""]."""
    values = value if isinstance(value, ListConfig) else [value]
    return ["" if v is None else str(v) for v in values]
