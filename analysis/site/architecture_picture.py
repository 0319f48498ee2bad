"""The rooms of `dlm` and `analysis` in their layers, with who imports whom, read from the code.

A room is a package. The order of the layers of `dlm` is the block that begins with ```` ```layers dlm ```` in
docs/architecture.md: a layer a line, the bottom first. An import that goes up or sideways is an error, so the picture
cannot lie.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from analysis.site.svg import box, document, path, text
from analysis.site.yamls import ROOT

PAGE = ROOT / "docs" / "architecture.md"
FENCE = "```layers "
COMMANDS = "commands"  # the room of all flat modules that are no room of their own
WIDTH, HEIGHT, GAP, LAYER = 112, 26, 14, 62  # of a room, between two, and from one layer to the next, in pixels
HUES = ("#2f7fc1", "#2f9e6e", "#8a6fd1", "#d9762b")

Imports = dict[str, set[str]]


def layers(page: str, package: str = "dlm") -> list[list[str]]:
    """The layers of a package as the page has them, the bottom first; `ValueError` where it has none."""
    _, fence, rest = page.partition(f"{FENCE}{package}\n")
    if not fence:
        raise ValueError(f"docs/architecture.md has no block {FENCE}{package}: write a layer a line, the bottom first")
    return [line.split() for line in rest.partition("```")[0].splitlines() if line.strip()]


def room_of(module: str, rooms: set[str], root: Path = ROOT) -> str | None:
    """The room of a module such as `dlm.decoding.engine.step`: the innermost that has a name in `rooms`; None for the
    package itself. `ValueError` for a package that is no room."""
    package, *parts = module.split(".")
    if parts[-1:] == ["__main__"]:  # a command, wherever it lies
        return COMMANDS
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in rooms:
            return ".".join(parts[:end])
    if parts and (root / package / parts[0]).is_dir():
        raise ValueError(f"{package}/{parts[0]} is in no layer of docs/architecture.md: add it to {FENCE}{package}")
    return COMMANDS if parts else None


def imported(file: Path, root: Path = ROOT) -> Iterator[str]:
    """The modules of the file's own package that it imports."""
    package = file.relative_to(root).parts[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if is_module(name, root) else node.module for name in inner]
        yield from (name for name in names if name.split(".")[0] == package)


def is_module(name: str, root: Path) -> bool:
    place = root / name.replace(".", "/")
    return place.is_dir() or place.with_suffix(".py").is_file()


def imports(order: list[list[str]], package: str = "dlm", root: Path = ROOT) -> Imports:
    """The rooms of a package that each of its rooms imports. `ValueError` where one is not below it, or is nowhere."""
    level = {room: i for i, layer in enumerate(order) for room in layer}
    graph: Imports = {room: set() for room in level}
    for file in sorted((root / package).rglob("*.py")):
        module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        own = room_of(module, set(level), root)
        for name in imported(file, root) if own else ():
            other = room_of(name, set(level), root)
            if other is None or other == own:
                continue
            if level[other] >= level[own]:
                raise ValueError(f"{module} imports {name}: {other} does not lie below {own} (docs/architecture.md)")
            graph[own].add(other)
    return graph


def reduced(graph: Imports) -> Imports:
    """Without the imports that follow from others: what a room reaches by way of another one that it imports."""

    def below(room: str) -> set[str]:
        return set().union(*({other} | below(other) for other in graph[room])) if graph[room] else set()

    return {room: {o for o in others if not any(o in below(p) for p in others)} for room, others in graph.items()}


def picture(order: list[list[str]], graph: Imports) -> str:
    """The layers as an SVG, the bottom layer at the bottom."""
    width = max(len(layer) for layer in order) * (WIDTH + GAP) + GAP
    place = {}
    for i, layer in enumerate(order):
        left = (width - len(layer) * (WIDTH + GAP) + GAP) // 2
        for j, room in enumerate(layer):
            place[room] = left + j * (WIDTH + GAP), GAP + (len(order) - 1 - i) * LAYER
    parts = []
    for room in place:
        for other in sorted(reduced(graph)[room]):
            (x, y), (to_x, to_y) = place[room], place[other]
            x, y, to_x = x + WIDTH // 2, y + HEIGHT, to_x + WIDTH // 2
            parts.append(path(f"M{x} {y}C{x} {y + 30} {to_x} {to_y - 30} {to_x} {to_y}", 1, 0.45))
    for room, (x, y) in place.items():
        hue = HUES[(len(order) - 1 - y // LAYER) % len(HUES)]
        parts += [f'<rect class="page" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4"/>']
        parts += [box(x, y, WIDTH, HEIGHT, hue, 0.35, 4), text(x + WIDTH // 2, y + 17, room)]
    style = "<style>.page{fill:#fff}@media(prefers-color-scheme:dark){.page{fill:#1e2129}}</style>"
    height = (len(order) - 1) * LAYER + HEIGHT + 2 * GAP
    return document("The rooms of dlm: a line from a room to one below it is an import", width, height, [style, *parts])


def made() -> str:
    """The picture of the code as it is."""
    order = layers(PAGE.read_text(encoding="utf-8"))
    return picture(order, imports(order))
