"""The reference of every option: what it is by default and what its comment says, read from the YAMLs in `conf/`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from analysis.site.yamls import ROOT, leaves, link, one_line
from dlm.markdown import table

CONF = ROOT / "conf"
KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w@/-]+):(?P<value>[^#]*)(?:#(?P<comment>.*))?$")
NOT_OPTIONS = ("_target_", "defaults", "hydra")
GLOBAL = "# @package _global_"
# Of the commands, in the order in which one meets them.
COMMANDS = (
    "train",
    "generate",
    "evaluate",
    "measure",
    "policy",
    "export",
    "benchmark",
    "replay",
    "dashboard",
    "embedded",
)


@dataclass(frozen=True)
class Option:
    """A value that can be set: its path in the config, its default as YAML has it, and what is said of it."""

    path: str
    default: str
    comment: str


def options_of(file: Path, prefix: str = "") -> Iterator[Option]:
    """The values of a YAML in their order, under `prefix`."""
    notes = comments(file)
    values = OmegaConf.to_container(OmegaConf.load(file), resolve=False) or {}
    for path, value in leaves({key: value for key, value in values.items() if key not in NOT_OPTIONS}):
        if path.split(".")[-1] != "_target_":
            yield Option(prefix + path, shown(value), notes.get(path, ""))


def comments(file: Path) -> dict[str, str]:
    """What is said of every key of a YAML, by its path: beside it, and above it where that is no evidence (which the
    page of the design space has)."""
    comment_at: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    above: list[str] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        if line.lstrip().startswith("#"):
            above.append(line.strip().lstrip("# "))
            continue
        if match := KEY.match(line):
            stack = [(depth, key) for depth, key in stack if depth < len(match["indent"])]
            stack.append((len(match["indent"]), match["key"]))
            lead = "" if number == len(above) else " ".join(above).partition("Evidence:")[0]  # not the file's header
            comment_at[".".join(key for _, key in stack)] = one_line(f"{lead} {match['comment'] or ''}")
        above = []
    return {path: comment for path, comment in comment_at.items() if comment}


def shown(value: Any) -> str:
    """A value as one would write it on the command line, in short."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"[{len(value)} entries]"
    return json.dumps(value, ensure_ascii=False)


def description(file: Path) -> str:
    """The comment that a YAML begins with, without its evidence and what is ours."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines[1:] if lines[:1] == [GLOBAL] else lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return one_line(re.split(r"\b(?:Evidence|Paper|Ours): ", "\n".join(comment))[0])


def said(file: Path) -> str:
    """Behind the name of an option: what it is, where its file says so."""
    return f": {description(file)}" if description(file) else ""


def defaults() -> Iterator[list[str]]:
    """A row for every group of `train.yaml`: its default and its options."""
    for entry in OmegaConf.load(CONF / "train.yaml").defaults:
        for group, option in entry.items() if not isinstance(entry, str) else ():
            names = ", ".join(f"`{file.stem}`" for file in files(group))
            yield [f"[`{group}`](#{group})", f"`{shown(option)}`" if option else "none", names]


def files(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def groups() -> list[str]:
    return sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())


def of_group(group: str) -> Iterator[str]:
    """The section of a group: its options in a list, their values in one table."""
    yield f"## {group}"
    yield "\n".join(f"- {link(file, f'`{file.stem}`')}{said(file)}" for file in files(group))
    files_with: dict[Option, list[str]] = {}
    for file in files(group):
        is_global = file.read_text(encoding="utf-8").startswith(GLOBAL)
        for option in options_of(file, "" if is_global else f"{group}."):
            files_with.setdefault(option, []).append(file.stem)
    rows = [
        [f"`{o.path}`", f"`{o.default}`", where(names, group), o.comment] for o, names in sorted_by_path(files_with)
    ]
    if rows:
        yield table(["value", "default", "of", "what it is"], rows)


def sorted_by_path(files_with: dict[Option, list[str]]) -> list[tuple[Option, list[str]]]:
    """Equal paths side by side, in the order in which the first of them came."""
    order = list(dict.fromkeys(option.path for option in files_with))
    return sorted(files_with.items(), key=lambda item: order.index(item[0].path))


def where(names: list[str], group: str) -> str:
    """The options that have a value: all, or their names."""
    return "all" if len(names) == len(files(group)) > 1 else ", ".join(f"`{name}`" for name in names)


def page() -> str:
    """The whole page."""
    sections = [
        "# Configuration reference",
        "Made by `python -m analysis.site` from the files in `conf/`. An option of a group is chosen with "
        "`group=option`, a value is set with `path=value`; `-m path=a,b` runs one job for each. "
        "[The design space](design_space.md) says what is known of the choices.",
        "## Groups of `dlm.train`",
        table(["group", "default", "options"], defaults()),
        "## Values of the commands",
    ]
    for name in COMMANDS:
        rows = [[f"`{o.path}`", f"`{o.default}`", o.comment] for o in options_of(CONF / f"{name}.yaml")]
        if rows:
            sections += [f"### {name}", table(["value", "default", "what it is"], rows)]
    sections += [part for group in groups() for part in of_group(group)]
    return "\n\n".join(sections) + "\n"
