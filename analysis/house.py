"""The plan of the code in numbers: `python -m analysis.house [FOLDER ...]` prints a table, a column for each folder
that holds `dlm/` and `analysis/`, by default this one.

A room is a package of `dlm/` or `analysis/`, or a module beside the packages that others import; what nobody imports
there, and every `__main__`, is a command. The commands are one room. A room stands one floor above the highest of those
that it imports; rooms in a circle share a floor.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import connected_components

from analysis.site.architecture_picture import COMMANDS, imported
from analysis.site.yamls import ROOT
from dlm.markdown import table

ALIKE = 6  # so many equal lines of code in two places are a pair of duplicates
FILE_LINES, FUNCTION_LINES = 300, 40  # at most, of a file and of a function
PACKAGES = ("dlm", "analysis")

Graph = dict[str, set[str]]  # what each module, or each room, imports


def files_of(root: Path) -> list[Path]:
    """The Python files of both packages."""
    return [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]


def module_imports(root: Path) -> Graph:
    """The modules that each module imports, wherever in it; the two packages themselves are none."""
    dotted = {file: ".".join(file.relative_to(root).with_suffix("").parts) for file in files_of(root)}
    names = {file: name.removesuffix(".__init__") for file, name in dotted.items()}
    graph: Graph = {name: set() for name in names.values() if name not in PACKAGES}
    for file, name in names.items():
        if name in graph:
            graph[name] |= {other for other in imported(file, root) if other in graph and other != name}
    return graph


def room_imports(modules: Graph, root: Path) -> Graph:
    """The rooms that each room imports, from `module_imports`."""
    used = set().union(*modules.values())

    def room(module: str) -> str:
        package, name, *rest = module.split(".")
        is_package = bool(rest) or (root / package / name).is_dir()
        is_command = module.endswith(".__main__") or not (is_package or module in used)
        return f"{package}.{COMMANDS if is_command else name}"

    graph: Graph = defaultdict(set)
    for module, others in modules.items():
        graph[room(module)] |= {room(other) for other in others} - {room(module)}
    return dict(graph)


def circles(graph: Graph) -> list[set[str]]:
    """The sets of more than one that all reach each other by imports."""
    names = sorted(graph)
    reached = np.array([[other in graph[name] for other in names] for name in names])
    number, label = connected_components(reached, connection="strong")
    members = [{name for name, own in zip(names, label, strict=True) if own == i} for i in range(number)]
    return [circle for circle in members if len(circle) > 1]


def floors(graph: Graph) -> int:
    """The number of floors of the rooms."""
    together = {name: frozenset(circle) for circle in circles(graph) for name in circle}

    @cache
    def height(rooms: frozenset[str]) -> int:
        below = {together.get(o, frozenset({o})) for room in rooms for o in graph[room]} - {rooms}
        return 1 + max(map(height, below), default=0)

    return max(height(together.get(room, frozenset({room}))) for room in graph)


def code_lines(file: Path) -> list[str]:
    """The lines of a file that are neither blank nor a comment nor an import."""
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith(("#", "import ", "from "))]


def duplicates(files: Iterable[Path]) -> int:
    """The pairs of places with `ALIKE` equal lines or more."""
    places = defaultdict(list)
    for file in files:
        lines = code_lines(file)
        for start in range(len(lines) - ALIKE + 1):
            places[tuple(lines[start : start + ALIKE])].append((str(file), start))
    pairs = {pair for same in places.values() for pair in combinations(same, 2)}
    # A longer stretch counts where it begins: where the lines before it are no pair.
    return sum(((a, i - 1), (b, j - 1)) not in pairs for (a, i), (b, j) in pairs)


def functions(files: Iterable[Path]) -> Iterator[tuple[int, str]]:
    """The lines of every function, and its name with that of its file."""
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.end_lineno - node.lineno + 1, f"`{node.name}` in {file.name}"


def plan(root: Path) -> dict[str, str]:
    """The numbers of a tree, by what they count."""
    files, modules = files_of(root), module_imports(root)
    rooms, lengths = room_imports(modules, root), list(functions(files))
    length = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    longest, (most, function) = max(files, key=length.get), max(lengths)
    return {
        "rooms": str(len(rooms)),
        "floors": str(floors(rooms)),
        "imports between rooms": str(sum(map(len, rooms.values()))),
        "circles of modules": str(len(circles(modules))),
        "modules in `dlm/` that lie in no package": str(len(list((root / "dlm").glob("*.py")))),
        f"pairs of places with {ALIKE} equal lines": str(duplicates(files)),
        "longest file": f"{length[longest]} ({longest.name})",
        "longest function": f"{most} ({function})",
        f"functions of more than {FUNCTION_LINES} lines": str(sum(n > FUNCTION_LINES for n, _ in lengths)),
        "functions": f"{len(lengths):,}",
        "files": str(len(files)),
        "lines": f"{sum(length.values()):,}",
    }


def main(folders: list[str]) -> None:
    trees = [Path(folder).resolve() for folder in folders] or [ROOT]
    plans = [plan(root) for root in trees]
    print(table(["", *(root.name for root in trees)], [[name, *(p[name] for p in plans)] for name in plans[0]]))


if __name__ == "__main__":
    main(sys.argv[1:])
