"""The commands and what each does: `python -m dlm`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from dlm.config.folders import PACKAGE


def commands() -> Iterator[tuple[str, str]]:
    """`python -m …` and what its docstring says it does, of every module that is a command. The modules are read,
    not imported, which would take seconds."""
    for package in (PACKAGE, PACKAGE.parent / "analysis"):
        for path in sorted([*package.glob("*.py"), *package.glob("*/__main__.py")]):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if path != Path(__file__) and is_command(tree):
                parts = path.relative_to(package.parent).with_suffix("").parts
                name = ".".join(part for part in parts if part != "__main__")
                yield f"python -m {name}", summary(ast.get_docstring(tree) or "")


def is_command(module: ast.Module) -> bool:
    """Whether a module does something where it is started."""
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in module.body)


def summary(docstring: str) -> str:
    """What a docstring says before it comes to the command itself: "Do this: `python …`" → "Do this"."""
    return " ".join(docstring.split("`python")[0].split("\n\n")[0].split()).rstrip(":. ")


def main() -> None:
    listed = [*commands()]
    width = max(len(command) for command, _ in listed)
    for command, what in listed:
        print(f"{command:{width}}  {what}")
    print("\nEach says more with --help. Where the package is installed, dlm-train is python -m dlm.train, and so on.")


if __name__ == "__main__":
    main()
