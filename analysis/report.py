"""Render the study: `python -m analysis.report [--runs runs] [--out reports/ablation]`.

Collects the runs of all sweeps into `results.json`, and renders `index.html` (self-contained), `index.md`, `index.tex`
and `figures/` from it. `--add` keeps the runs of the existing `results.json` that are missing from the runs folder.
`--committed` renders the existing `results.json`, which reproduces the report byte for byte.
`--show NAME` prints an artefact's tables.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from analysis.artefacts import artefacts
from analysis.evidence.effect import VERDICTS
from analysis.pages import render
from analysis.pages.claims import claim_table, count_text, evaluate_claims, paper_numbers
from analysis.pages.environment import environment
from analysis.pages.exhibits import CELLS, Plot, Table
from analysis.pages.forest import axis_of
from analysis.pages.provenance import (
    code_facts,
    common_setting,
    failed_runs,
    notes,
    quantity,
    sweep_costs,
    training_facts,
)
from analysis.pages.sections import evidence, is_empty, limits, section_context
from analysis.pages.tables_in_page import table_context
from analysis.tables.collect import collect
from analysis.tables.earlier import Earlier
from analysis.tables.results import FINISHED, Results
from dlm.config.folders import shipped
from dlm.console import quiet
from dlm.runs.storage import write_atomically

RESULTS = "results.json"
OUT = Path("reports/ablation")
PAGES = ("index.html", "index.md", "index.tex")


def render_report(results: Results, out: Path) -> Path:
    """Write the report's files, a pure function of the results, to the folder `out`; returns the path of index.html."""
    paper, modules = paper_numbers(), artefacts()
    claims = evaluate_claims(results, paper, modules)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".figures") as temporary:
        figures = Path(temporary) / "figures"
        figures.mkdir()
        sections = [section_context(name, module, results, paper, claims, figures) for name, module in modules.items()]
        shutil.rmtree(out / "figures", ignore_errors=True)  # drops figures of a previous report
        figures.rename(out / "figures")
    context = {
        "claims": claims,
        "claim_table": claim_table(claims),
        "counts": count_text(claims),
        "sections": sections,
        "topics": list(dict.fromkeys(s["topic"] for s in sections)),
        "topics_of": {s["name"]: s["topic"] for s in sections},
        "verdicts": [v for v in VERDICTS if any(claim.verdict == v for claim in claims)],
        "headlines": paper["headlines"],
        "axis": axis_of(claims),
        "evidence": {claim.id: evidence(claim, sections) for claim in claims},
        "limits": limits(results, claims),
        "cells": CELLS,
        "points": len(results.points),
        "finished": int((results.points["state"] == FINISHED).sum()),
        "failed": failed_runs(results),
        "notes": notes(results),
        "total": training_facts(results, results.points["sweep"].unique()) + code_facts(results),
        "costs": sweep_costs(results),
        "common": common_setting(results).values(),
        "source": paper["source"],
        "runs": run_table(results),
        "runs_csv": table_context(run_table(results), "run")["csv"],
    }
    for page in PAGES:
        write_atomically(out / page, environment().get_template(f"report{Path(page).suffix}.j2").render(context))
    return out / PAGES[0]


def run_table(results: Results) -> Table:
    """Every run of the report with its points and cost."""
    runs = results.runs
    names = results.points.groupby("run")[["sweep", "point"]].agg(lambda v: ", ".join(dict.fromkeys(v)))
    frame = pd.DataFrame(
        {
            "run": runs["run"],
            "points": [names["point"].get(run, "") for run in runs["run"]],
            "seed": [f"{s}" for s in runs["seed"]],
            "tokens": runs["tokens"],
            "FLOPs": [quantity(f, "FLOP") for f in runs["train_flops"]],
            "minutes": runs["train_seconds"].astype(float) / 60,
            "commit": [c or "" for c in runs["commit"]] if "commit" in runs else "",
        }
    )
    return Table(frame.astype({"points": str}), "Every run of the report.", {"tokens": 0})


def show(results: Results, names: Sequence[str]) -> None:
    """Print artefacts by name, or the `claims`, as tables. Raises `ValueError` for an unknown name."""
    console, paper, modules = Console(), paper_numbers(), artefacts()
    for name in names:
        if name == "claims":
            console.print(render.to_terminal(claim_table(evaluate_claims(results, paper, modules)), "claims"))
            continue
        if name not in modules:
            raise ValueError(f"--show {name!r} is no artefact: choose claims or one of {', '.join(modules)}")
        if not len(results.of("runs", modules[name].SWEEPS)):
            console.print(f"{modules[name].TITLE}: no finished run")
            continue
        for exhibit in modules[name].exhibits(results, paper):
            if isinstance(exhibit, Table) and not is_empty(exhibit):
                console.print(render.to_terminal(exhibit, modules[name].TITLE))
            elif isinstance(exhibit, Plot) and not is_empty(exhibit):
                console.print(f"{exhibit.name}: {len(exhibit.panels)} panels, {exhibit.caption}")


def default_folder(name: str) -> Path:
    """A folder of the working directory; where it has none, the one that comes with the package."""
    return Path(name) if Path(name).is_dir() else shipped(name)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="the overrides the study was run with, if any")
    parser.add_argument("--sweeps", type=Path, default=default_folder("sweeps"), help="default: %(default)s")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--committed", action="store_true", help="render the results.json that is in --out")
    group.add_argument("--add", action="store_true", help="add the runs to the results.json that is in --out")
    parser.add_argument("--show", action="append", default=[], metavar="NAME", help="print an artefact, or claims")
    arguments = parser.parse_intermixed_args(argv)
    path = arguments.out / RESULTS
    quiet()  # counting a run's FLOPs builds its model, which prints
    torch.set_num_threads(1)  # small forwards; next to a running study, more threads would only wait for each other
    try:
        if not arguments.committed:
            earlier = Earlier(Results.load(path)) if arguments.add else None
            results = collect(arguments.sweeps, arguments.runs, arguments.overrides, earlier)
            if lost := earlier.lost(results) if earlier else []:
                raise ValueError(
                    f"{len(lost)} runs of {str(path)!r} would be lost ({', '.join(lost[:3])}): they are no points of "
                    "the sweeps with these overrides, or were evaluated otherwise. Give the overrides that they were "
                    "made with (a study may be given fewer seeds than its report), or leave out --add"
                )
            results.save(path)
        read_from = default_folder(str(OUT)) / RESULTS if arguments.out == OUT else path
        results = Results.load(read_from)
        if arguments.show:
            show(results, arguments.show)
            return 0
        page = render_report(results, arguments.out)
    except ValueError as error:
        parser.error(str(error))
    print(f"{os.path.relpath(page)}, index.md, index.tex and {RESULTS} beside it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
