"""The design space on one page: `python -m analysis.design_space` writes docs/design_space.md, and updates the table of
options in the README.

Everything on the page comes from the YAMLs in `conf/`. The comment at the top of a file is its header. It describes the
option, cites papers as `(Name, arXiv 2512.14067; …)` or, for a recipe, as `Name (arXiv 2512.14067):`, and continues
with the parts `Evidence:`, `Paper:` and `Ours:`, each at the start of a line. A recipe's choices come from its composed
config.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from analysis.plan.compose import CONF
from dlm.markdown import table

ROOT = CONF.parent
PAGE, README = ROOT / "docs" / "design_space.md", ROOT / "README.md"
GROUPS = (
    "attention",
    "masking",
    "noise_level",
    "kernel",
    "loss",
    "auxiliary",
    "rollout",
    "block_schedule",
    "decoding",
    "trainable",
)
SHARED = ("block_size", "token_shift")  # axes that are values in train.yaml, not groups
PARTS = ("Evidence", "Paper", "Ours")
OF_OPTION = re.compile(r"(?:\(|; )(?P<name>[^();]+), arXiv (?P<id>[^\s,;:)]+)")
OF_RECIPE = re.compile(r"^(?P<name>[^(]+) \(arXiv (?P<id>[^\s)]+)\):")
ROW = re.compile(r"^\| (?:`(?P<group>\w+)`)? *\| [^|]+ \|")
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


def page() -> str:
    """The content of docs/design_space.md."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        defaults = choices([])
        recipes = [(path, choices([f"recipe={path.stem}"])) for path in options("recipe")]
    sections = [
        "# The design space",
        "Made by `make design-space` from the headers of the files in `conf/`. Any option of an axis goes with any of "
        "another, unless it says what it needs. Evidence is what the named source reports, not what was measured "
        "here; *second hand*: read in a summary of it; *contested*: sources disagree, or nobody has looked. An option "
        "without evidence has none that was found.",
        "## Axes",
        table(["axis", "value", "what it is", "file", "paper", "evidence", "ours"], axes(defaults)),
        "## Numbers and switches",
        "Each with its default, of all options of its axis that have it. Any of them can be swept "
        "(`python -m dlm.train -m loss.per=token,sequence`).",
        table(["value", "default", "what it is", "evidence"], switches()),
        "## Recipes",
        "A published method as one set of overrides: what it chooses on every axis, and where it is not the paper's. "
        "An axis that is *null* is not used.",
        table(["recipe", "paper", *GROUPS, "further values", "what the paper has", "what is ours"], methods(recipes)),
    ]
    return "\n\n".join(sections) + "\n"


def choices(overrides: Sequence[str]) -> dict[str, str]:
    """Axis → the option chosen with these overrides. Needs an initialised Hydra."""
    chosen = compose("train", list(overrides), return_hydra_config=True).hydra.runtime.choices
    return {group: str(chosen[group]).replace("None", "null") for group in GROUPS}


def axes(defaults: dict[str, str]) -> Iterator[list[str]]:
    """One row per option of every axis."""
    for group in GROUPS:
        for path in options(group):
            head = header(path)
            value = f"`{path.stem}`" + " (default)" * (defaults[group] == path.stem)
            files = f"{link(path)} {link(*code(path))}"
            yield [f"`{group}`", value, head.what, files, papers(head), *head.of("Evidence", "Ours")]


def switches() -> Iterator[list[str]]:
    """One row per commented value, merged over the options that have it."""
    by_path: dict[str, list[Setting]] = {}
    shared = [s for s in settings("", CONF / "train.yaml") if s.path in SHARED]
    for setting in [*shared, *(s for group in GROUPS for path in options(group) for s in settings(group, path))]:
        by_path.setdefault(setting.path, []).append(setting)
    for path, same in by_path.items():
        defaults = ", ".join(f"`{value}`" for value in dict.fromkeys(s.default for s in same))
        evidence = next((s.evidence for s in same if s.evidence), "")
        yield [f"`{path}`", defaults, " / ".join(dict.fromkeys(s.comment for s in same)), evidence]


def methods(recipes: Iterable[tuple[Path, dict[str, str]]]) -> Iterator[list[str]]:
    """One row per recipe."""
    for path, options_by_axis in recipes:
        head, content = header(path), OmegaConf.to_container(OmegaConf.load(path))
        groups = [(key.removeprefix("override /"), d[key]) for d in content.pop("defaults") for key in d]
        further = dict([(key, name) for key, name in groups if key not in GROUPS], **dict(leaves(content)))
        values = " ".join(f"`{key}={str(value).lower()}`" for key, value in further.items())
        axis_cells = (f"`{option}`" for option in options_by_axis.values())
        yield [link(path, path.stem), papers(head) or head.what, *axis_cells, values, *head.of("Paper", "Ours")]


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every leaf of a config."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def code(path: Path) -> tuple[Path, str]:
    """The Python file of an option's class and the link text. Raises `ValueError` if the YAML names no class of dlm."""
    target = re.search(r"_target_: (dlm(?:\.\w+)+)\.\w+", path.read_text(encoding="utf-8"))
    if target is None:
        raise ValueError(f"{path} names no class of dlm as its _target_")
    module = ROOT / target[1].replace(".", "/")
    return (module / "__init__.py" if module.is_dir() else module.with_suffix(".py")), "code"


def link(path: Path, text: str = "yaml") -> str:
    """A Markdown link to a file of the repository, relative to docs/."""
    return f"[{text}](../{path.relative_to(ROOT).as_posix()})"


def papers(head: Header) -> str:
    """Links to the cited papers."""
    return ", ".join(f"[{name}](https://arxiv.org/abs/{number})" for name, number in head.papers)


def with_options(readme: str) -> str:
    """Update the options in the README's table: new ones are appended to their group, deleted ones are removed. Other
    cells stay unchanged."""
    lines, rows, group = readme.splitlines(), {}, ""
    for number, line in enumerate(lines):
        if match := ROW.match(line):
            group = match["group"] or group
            rows.setdefault(group, []).append(number)
    for group in (*GROUPS, "recipe"):
        present, listed = [path.stem for path in options(group)], "".join(lines[number] for number in rows[group])
        for number in rows[group]:
            cells = lines[number].split(" | ")
            names = [name for name in cells[1].split(", ") if name.strip("`") in (*present, "none")]
            if number == rows[group][-1]:
                names += [f"`{name}`" for name in present if f"`{name}`" not in listed]
            lines[number] = " | ".join([cells[0], ", ".join(names), *cells[2:]])
    return "\n".join(lines) + "\n"


def main() -> None:
    for path, text in ((PAGE, page()), (README, with_options(README.read_text(encoding="utf-8")))):
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
