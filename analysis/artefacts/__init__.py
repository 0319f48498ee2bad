"""One module per table or figure of the report. To add one, add a file here (and the sweep in `sweeps/` that it reads).

A module defines its `TITLE`, its `PLACE` in the report, its `TOPIC` (by which the page filters), the `SWEEPS` whose
runs it reads, and

    exhibits(results, paper) -> list of tables and plots, a pure function of the results and the paper's numbers

For every claim of `analysis/paper.yaml` that names the module, it also defines a function
`(results, paper) -> list[Effect]` named like the claim's id; every effect has an id of its own, by which `paper.yaml`
names the primary one. A module with runs at several budgets maps claims in `BY_BUDGET` to functions
`results -> list[(tokens, Effect)]`, from which the cause of a disagreement is told.

The module's docstring is printed in the report.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType


def artefacts(study: str = "") -> dict[str, ModuleType]:
    """Name → module of every artefact, in the order of the report: of a folder of this package, or of the package."""
    package = import_module(f"{__name__}.{study}") if study else import_module(__name__)
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg]
    modules = {name: import_module(f"{package.__name__}.{name}") for name in names}
    return dict(sorted(modules.items(), key=lambda item: (item[1].PLACE, item[0])))
