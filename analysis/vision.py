"""The study of vision-language parents: `python -m analysis.vision [override ...] [--runs runs] [--out reports/vlm]`.

Collects the runs of `sweeps/vlm/*.yaml` into `results.json`, and writes `index.md` with its figures beside it: the
claims of DiffusionVL with their verdicts, and every table. `--committed` renders the `results.json` that is there.

The runs are made by `python -m analysis.study sweeps/vlm/*.yaml` (`make vlm-study`).
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import torch
import yaml

from analysis.artefacts import artefacts
from analysis.pages import render
from analysis.pages.claims import claim_table, evaluate_claims
from analysis.pages.exhibits import CELLS, Table
from analysis.pages.provenance import code_facts, training_facts
from analysis.pages.sections import is_empty, missing
from analysis.tables.collect import collect
from analysis.tables.results import Results
from dlm.config.folders import shipped
from dlm.console import quiet
from dlm.runs.storage import write_atomically

FOLDER = "sweeps/vlm"
OUT = Path("reports/vlm")
LISTED = "results.json"


def page(results: Results, figures: Path) -> Iterator[str]:
    """The paragraphs of the page; figures are written to a folder beside it."""
    paper, modules = numbers(), artefacts("vlm")
    sweeps = results.points["sweep"].unique()
    yield "# Vision-language parents"
    yield (
        f"The tables of DiffusionVL ({paper['source']}) on a parent of 1.5M parameters that reads rendered scenes "
        "(`dlm/assets/vlm`), and on one of 1.9M whose images have three axes of positions: directions can be held "
        "against the paper's, levels cannot."
    )
    yield "\n".join(f"- {name}: {value}" for name, value in [*training_facts(results, sweeps), *code_facts(results)])
    yield render.to_markdown(claim_table(evaluate_claims(results, paper, modules)))
    for module in modules.values():
        yield f"## {module.TITLE}"
        yield " ".join((module.__doc__ or "").split())
        for exhibit in module.exhibits(results, paper) if len(results.of("runs", module.SWEEPS)) else ():
            if is_empty(exhibit):
                continue
            if isinstance(exhibit, Table):
                yield f"{render.markdown(exhibit.caption)}\n\n{render.to_markdown(exhibit)}"
            else:
                render.save_plot(exhibit, figures)
                names = [f"{figures.name}/{exhibit.name}-{n}.svg" for n in range(1, len(exhibit.panels) + 1)]
                yield "\n".join(f"![{exhibit.alt}]({name})" for name in names) + f"\n\n{exhibit.caption}"
        if lacking := missing(results, module.SWEEPS):
            yield "Not there: " + "; ".join(lacking) + "."
    yield CELLS


def numbers() -> dict:
    """What the paper prints and claims, from `analysis/diffusionvl.yaml`."""
    return yaml.safe_load(resources.files("analysis").joinpath("diffusionvl.yaml").read_text(encoding="utf-8"))


def write(results: Results, out: Path) -> Path:
    """Write the page, a pure function of the results, and return its path."""
    out.mkdir(parents=True, exist_ok=True)
    figures = out / "figures"
    shutil.rmtree(figures, ignore_errors=True)
    figures.mkdir()
    write_atomically(out / "index.md", "\n\n".join(page(results, figures)) + "\n")
    return out / "index.md"


def main(argv: Sequence[str] | None = None) -> int:
    folder = Path(FOLDER) if Path(FOLDER).is_dir() else shipped("sweeps") / "vlm"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="the overrides the study was run with, if any")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    parser.add_argument("--committed", action="store_true", help="render the results.json that is in --out")
    arguments = parser.parse_intermixed_args(argv)
    quiet()  # counting a run's FLOPs builds its model, which prints
    torch.set_num_threads(1)
    try:
        if not arguments.committed:
            collect(folder, arguments.runs, arguments.overrides).save(arguments.out / LISTED)
        written = write(Results.load(arguments.out / LISTED), arguments.out)
    except ValueError as error:
        parser.error(str(error))
    print(f"{os.path.relpath(written)}, and {LISTED} beside it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
