"""The design space on one page, docs/design_space.md, and the table of options in the README.

Everything on the page comes from the YAMLs in `conf/` (`analysis.site.yamls`). A recipe's choices come from its
composed config.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from analysis.site.yamls import ROOT, Header, Setting, header, leaves, link, options, settings
from dlm.config.folders import CONF
from dlm.markdown import table

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
ROW = re.compile(r"^\| (?:`(?P<group>\w+)`)? *\| [^|]+ \|")


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
        "An axis that is *null* is not used; decoding that is *null* is the confidence threshold.",
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
        groups = [(key.removeprefix("override /"), d[key]) for d in content.pop("defaults", []) for key in d]
        further = dict([(key, name) for key, name in groups if key not in GROUPS], **dict(leaves(content)))
        values = " ".join(f"`{key}={str(value).lower()}`" for key, value in further.items())
        axis_cells = (f"`{option}`" for option in options_by_axis.values())
        yield [link(path, path.stem), papers(head) or head.what, *axis_cells, values, *head.of("Paper", "Ours")]


def code(path: Path) -> tuple[Path, str]:
    """The Python file of an option's class and the link text. Raises `ValueError` if the YAML names no class of dlm."""
    target = re.search(r"_target_: (dlm(?:\.\w+)+)\.\w+", path.read_text(encoding="utf-8"))
    if target is None:
        raise ValueError(f"{path} names no class of dlm as its _target_")
    module = ROOT / target[1].replace(".", "/")
    return (module / "__init__.py" if module.is_dir() else module.with_suffix(".py")), "code"


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
