"""The command line before Hydra reads it. A shell's quotes are gone by then, and Hydra would read `=`, `,`, blanks and
letters beyond ASCII in a text or a path as its own grammar."""

from __future__ import annotations

import re
from pathlib import Path

# The last names of the options that hold a path.
PATHS = ("path", "runs_dir", "run", "to", "out", "policy", "trace", "tokenizer", "dllm")
HYDRAS = re.compile(r"[A-Za-z0-9_./:+%*@?|\\-]*")  # what Hydra takes as it is; after a backslash, what its user escaped


def with_path_quoted(argument: str, swept: bool) -> str:
    """`data.path=my text.txt` as Hydra's quoted string. In a sweep `a,b` are two values, unless that is the name of
    something that exists."""
    key, _, value = argument.partition("=")
    is_path = key.rpartition(".")[2].lstrip("+") in PATHS
    if not is_path or HYDRAS.fullmatch(value) or value[:1] in ("'", '"', "[", "{") or "\\" in value or "${" in value:
        return argument
    if swept and set(value) & set(",(") and not Path(value).expanduser().exists():
        return argument
    return f"{key}={quoted(value)}"


def quoted(value: str) -> str:
    """Any text as a string of Hydra's grammar, whose value it is."""
    value = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + (match[2] and "\\'"), value)
    return f"'{value}'".replace("${", "\\${")  # not an interpolation
