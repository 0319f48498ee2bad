"""One module per table or figure. Adding one is one file here (and the sweep in `sweeps/` that it reads).

A module says its `TITLE`, its `PLACE` in the report and the `SWEEPS` whose runs it reads, and has

    exhibits(results, paper) -> list of tables and plots, a pure function of the results and the paper's numbers

and one function `(results, paper) -> list[Effect]` for every claim of `analysis/paper.yaml` that names the module, with
the claim's id as its name.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType


def artefacts() -> dict[str, ModuleType]:
    """All modules by name, in the order of the report."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    found = {name: import_module(f"{__name__}.{name}") for name in names}
    return dict(sorted(found.items(), key=lambda item: (item[1].PLACE, item[0])))
