"""The YAMLs of `conf/` as their comments describe them.

The comment at the top of a file is its header. It describes the option, and cites papers as `(Name, arXiv 2512.14067;
…)` or, for a recipe, as `Name (arXiv 2512.14067):`. The parts `Evidence:`, `Paper:` and `Ours:` follow, each at the
start of a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm.config.folders import CONF

ROOT = CONF.parent
PARTS = ("Evidence", "Paper", "Ours")
OF_OPTION = re.compile(r"(?:\(|; )(?P<name>[^();]+), arXiv (?P<id>[^\s,;:)]+)")
OF_RECIPE = re.compile(r"^(?P<name>[^(]+) \(arXiv (?P<id>[^\s)]+)\):")
SETTING = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?: +(?P<value>[^#]*?))?(?: +# (?P<comment>.*))?$")


@dataclass(frozen=True)
class Header:
    """The header of a YAML: its first sentence, cited papers as (name, arXiv id), and parts by name."""

    what: str
    papers: tuple[tuple[str, str], ...]
    parts: dict[str, str]

    def of(self, *names: str) -> list[str]:
        """The texts of the parts with these names, "" for a missing one."""
        return [self.parts.get(name, "").rstrip(".") for name in names]


@dataclass(frozen=True)
class Setting:
    """A commented value of an option: its path in the config, default, comment and evidence."""

    path: str
    default: str
    comment: str
    evidence: str


def header(path: Path) -> Header:
    """Parse the header of a YAML. Raises `ValueError` if it has none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines[1:] if lines and lines[0].startswith("# @package") else lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    if not comment:
        raise ValueError(f"{path} has no header: begin it with a comment that says what it is")
    text, *rest = re.split(rf"^({'|'.join(PARTS)}): ", "\n".join(comment), flags=re.MULTILINE)
    text, parts = one_line(text), {name: one_line(part) for name, part in zip(rest[::2], rest[1::2], strict=True)}
    return Header(first_sentence(text), tuple(references(text)), parts)


def one_line(text: str) -> str:
    """The text with every run of white space replaced by one space."""
    return " ".join(text.split())


def references(text: str) -> list[tuple[str, str]]:
    """(name, arXiv id) of every paper that a text cites."""
    return [(m["name"].strip(), m["id"]) for pattern in (OF_RECIPE, OF_OPTION) for m in pattern.finditer(text)]


def first_sentence(text: str) -> str:
    """The first sentence of a header, without citations and without the name at the start of a recipe's."""
    text = re.sub(r" \([^()]*arXiv[^()]*\)", "", OF_RECIPE.sub("", text))
    return re.split(r"(?<=\.)\s", text.strip())[0].rstrip(".")


def settings(group: str, path: Path) -> Iterator[Setting]:
    """The values of a YAML with a comment on the same line; comment lines above may hold their `Evidence:`."""
    stack: list[tuple[int, str]] = []
    above: list[str] = []  # the comment lines directly above
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.strip().removeprefix("#").strip())
            continue
        if match := SETTING.match(line):
            stack = [(depth, key) for depth, key in stack if depth < len(match["indent"])]
            stack.append((len(match["indent"]), match["key"]))
            if match["comment"]:
                evidence = one_line(" ".join(above).partition("Evidence: ")[2]).rstrip(".")
                keys = [*([group] if group else []), *(key for _, key in stack)]
                yield Setting(".".join(keys), (match["value"] or "").strip(), match["comment"], evidence)
        above = []


def options(group: str) -> list[Path]:
    """The YAMLs of a group, sorted by name."""
    return sorted((CONF / group).glob("*.yaml"))


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every leaf of a config."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def link(path: Path, text: str = "yaml") -> str:
    """A Markdown link to a file of the repository, relative to docs/."""
    return f"[{text}](../{path.relative_to(ROOT).as_posix()})"
