"""The design space on one page: `python -m analysis.design_space` writes docs/design_space.md, and the options into the
table of the README.

Nothing is said here that is not said of an option in its own YAML. The comment a file begins with is its header: what
it is, with the papers it is from as `(Name, arXiv 2512.14067; …)` or, of a recipe, `Name (arXiv 2512.14067):`, and then
the parts `Evidence:`, `Paper:` and `Ours:`, each from the beginning of a line. What a recipe chooses is composed.
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
SHARED = ("block_size", "token_shift")  # axes that are a value of train.yaml
PARTS = ("Evidence", "Paper", "Ours")
OF_OPTION = re.compile(r"(?:\(|; )(?P<name>[^();]+), arXiv (?P<id>[^\s,;:)]+)")
OF_RECIPE = re.compile(r"^(?P<name>[^(]+) \(arXiv (?P<id>[^\s)]+)\):")
ROW = re.compile(r"^\| (?:`(?P<group>\w+)`)? *\| [^|]+ \|")
SETTING = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?: +(?P<value>[^#]*?))?(?: +# (?P<comment>.*))?$")


@dataclass(frozen=True)
class Header:
    """What a YAML says of itself: the first sentence, its references (name, arXiv id), and its parts."""

    what: str
    papers: tuple[tuple[str, str], ...]
    parts: dict[str, str]

    def of(self, *names: str) -> list[str]:
        """The parts of these names, empty where there is none."""
        return [self.parts.get(name, "").rstrip(".") for name in names]


@dataclass(frozen=True)
class Setting:
    """A commented value of an option: its path in the config, default, comment and what is known of it."""

    path: str
    default: str
    comment: str
    evidence: str


def header(path: Path) -> Header:
    """The header of a YAML; `ValueError` where it has none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines[1:] if lines and lines[0].startswith("# @package") else lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    if not comment:
        raise ValueError(f"{path} has no header: begin it with a comment that says what it is")
    text, *rest = re.split(rf"^({'|'.join(PARTS)}): ", "\n".join(comment), flags=re.MULTILINE)
    text, parts = joined(text), {name: joined(part) for name, part in zip(rest[::2], rest[1::2], strict=True)}
    return Header(first_sentence(text), tuple(references(text)), parts)


def joined(text: str) -> str:
    return " ".join(text.split())


def references(text: str) -> list[tuple[str, str]]:
    """(name, arXiv id) of every paper that a text refers to."""
    return [(m["name"].strip(), m["id"]) for pattern in (OF_RECIPE, OF_OPTION) for m in pattern.finditer(text)]


def first_sentence(text: str) -> str:
    """Without its references, and without the name that a recipe begins with."""
    text = re.sub(r" \([^()]*arXiv[^()]*\)", "", OF_RECIPE.sub("", text))
    return re.split(r"(?<=\.)\s", text.strip())[0].rstrip(".")


def settings(group: str, path: Path) -> Iterator[Setting]:
    """The values of a YAML that have a comment beside them."""
    stack: list[tuple[int, str]] = []
    above: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.strip().removeprefix("#").strip())
            continue
        if match := SETTING.match(line):
            stack = [(depth, key) for depth, key in stack if depth < len(match["indent"])]
            stack.append((len(match["indent"]), match["key"]))
            if match["comment"]:
                evidence = joined(" ".join(above).partition("Evidence: ")[2]).rstrip(".")
                keys = [*([group] if group else []), *(key for _, key in stack)]
                yield Setting(".".join(keys), (match["value"] or "").strip(), match["comment"], evidence)
        above = []


def options(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def page() -> str:
    """The whole page."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        usual = choices([])
        recipes = [(path, choices([f"recipe={path.stem}"])) for path in options("recipe")]
    sections = [
        "# The design space",
        "Made by `make design-space` from the headers of the files in `conf/`. Any option of an axis goes with any of "
        "another, unless it says what it needs. Evidence is what the named source reports, not what was measured "
        "here; *second hand*: read in a summary of it; *contested*: sources disagree, or nobody has looked. An option "
        "without evidence has none that was found.",
        "## Axes",
        table(["axis", "value", "what it is", "file", "paper", "evidence", "ours"], axes(usual)),
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
    """Which option every axis has under these overrides."""
    found = compose("train", list(overrides), return_hydra_config=True).hydra.runtime.choices
    return {group: str(found[group]).replace("None", "null") for group in GROUPS}


def axes(usual: dict[str, str]) -> Iterator[list[str]]:
    """A row for every option of every axis."""
    for group in GROUPS:
        for path in options(group):
            said = header(path)
            value = f"`{path.stem}`" + " (default)" * (usual[group] == path.stem)
            files = f"{link(path)} {link(*code(path))}"
            yield [f"`{group}`", value, said.what, files, papers(said), *said.of("Evidence", "Ours")]


def switches() -> Iterator[list[str]]:
    """A row for every commented value, whatever number of options has it."""
    found: dict[str, list[Setting]] = {}
    shared = [s for s in settings("", CONF / "train.yaml") if s.path in SHARED]
    for setting in [*shared, *(s for group in GROUPS for path in options(group) for s in settings(group, path))]:
        found.setdefault(setting.path, []).append(setting)
    for path, same in found.items():
        defaults = ", ".join(f"`{value}`" for value in dict.fromkeys(s.default for s in same))
        evidence = next((s.evidence for s in same if s.evidence), "")
        yield [f"`{path}`", defaults, " / ".join(dict.fromkeys(s.comment for s in same)), evidence]


def methods(recipes: Iterable[tuple[Path, dict[str, str]]]) -> Iterator[list[str]]:
    """A row for every recipe."""
    for path, chosen in recipes:
        said, own = header(path), OmegaConf.to_container(OmegaConf.load(path))
        chosen_here = [(key.removeprefix("override /"), d[key]) for d in own.pop("defaults") for key in d]
        further = dict([(key, name) for key, name in chosen_here if key not in GROUPS], **dict(flat(own)))
        values = " ".join(f"`{key}={str(value).lower()}`" for key, value in further.items())
        options = (f"`{option}`" for option in chosen.values())
        yield [link(path, path.stem), papers(said) or said.what, *options, values, *said.of("Paper", "Ours")]


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a config by their paths."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def code(path: Path) -> tuple[Path, str]:
    """The Python file of an option, and its name for a link."""
    target = re.search(r"_target_: (dlm(?:\.\w+)+)\.\w+", path.read_text(encoding="utf-8"))
    if target is None:
        raise ValueError(f"{path} names no class of dlm as its _target_")
    module = ROOT / target[1].replace(".", "/")
    return (module / "__init__.py" if module.is_dir() else module.with_suffix(".py")), "code"


def link(path: Path, text: str = "yaml") -> str:
    return f"[{text}](../{path.relative_to(ROOT).as_posix()})"


def papers(said: Header) -> str:
    return ", ".join(f"[{name}](https://arxiv.org/abs/{number})" for name, number in said.papers)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def with_options(readme: str) -> str:
    """The README with all options in its table: new ones are put behind the others of their group, those that are gone
    are taken out. What it says of them is left as it is."""
    lines, rows, group = readme.splitlines(), {}, ""
    for number, line in enumerate(lines):
        if match := ROW.match(line):
            group = match["group"] or group
            rows.setdefault(group, []).append(number)
    for group in (*GROUPS, "recipe"):
        there, said = [path.stem for path in options(group)], "".join(lines[number] for number in rows[group])
        for number in rows[group]:
            cells = lines[number].split(" | ")
            names = [name for name in cells[1].split(", ") if name.strip("`") in (*there, "none")]
            if number == rows[group][-1]:
                names += [f"`{name}`" for name in there if f"`{name}`" not in said]
            lines[number] = " | ".join([cells[0], ", ".join(names), *cells[2:]])
    return "\n".join(lines) + "\n"


def main() -> None:
    for path, text in ((PAGE, page()), (README, with_options(README.read_text(encoding="utf-8")))):
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
