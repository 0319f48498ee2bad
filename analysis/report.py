"""Render the study: `python -m analysis.report [--runs runs] [--out reports/ablation]`.

Collects the runs of all sweeps into `results.json` and renders from it `index.html` (self-contained), `index.md`,
`index.tex` and `figures/`. `--add` keeps what the `results.json` that is there knows of runs that the folder lacks.
`--committed` renders from the `results.json` that is there, which gives the same bytes.
`--show NAME` prints an artefact's tables.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import torch
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from rich.console import Console

from analysis.artefacts import artefacts
from analysis.pages import render
from analysis.pages.claims import Claim, claim_table, evaluate_claims, paper_numbers, shown
from analysis.pages.exhibits import Exhibit, Plot, Table
from analysis.pages.provenance import code, failed, notes, quantity, ran, setting
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
    """Write the report's files to `out`, a pure function of the results, and return its index.html."""
    paper, modules = paper_numbers(), artefacts()
    claims = evaluate_claims(results, paper, modules)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".figures") as temporary:
        figures = Path(temporary) / "figures"
        figures.mkdir()
        sections = [section(name, module, results, paper, claims, figures) for name, module in modules.items()]
        shutil.rmtree(out / "figures", ignore_errors=True)  # none of an earlier report, whose runs are gone
        figures.rename(out / "figures")
    context = {
        "claims": claims,
        "claim_table": claim_table(claims),
        "counts": pd.Series([c.verdict for c in claims]).value_counts().to_dict(),
        "sections": sections,
        "points": len(results.points),
        "finished": int((results.points["state"] == FINISHED).sum()),
        "failed": failed(results),
        "notes": notes(results),
        "total": ran(results, results.points["sweep"].unique()) + code(results),
        "source": paper["source"],
        "runs": run_table(results),
    }
    for page in PAGES:
        write_atomically(out / page, environment().get_template(f"report{Path(page).suffix}.j2").render(context))
    return out / PAGES[0]


def section(
    name: str, module: ModuleType, results: Results, paper: dict[str, Any], claims: list[Claim], figures: Path
) -> dict[str, Any]:
    """What the templates show of one artefact; its figures are written to `figures`. Without runs there is nothing to
    show but that."""
    trained = len(results.of("runs", module.SWEEPS)) > 0
    found = module.exhibits(results, paper) if trained else []
    return {
        "name": name,
        "title": module.TITLE,
        "about": " ".join((module.__doc__ or "").split()),
        "paper": paper["settings"].get(name),
        "claims": [c for c in claims if c.artefact == name],
        "trained": trained,
        "exhibits": [exhibit(e, figures) for e in found if not is_empty(e)],
        "unmeasured": unmeasured([e for e in found if is_empty(e)]),
        "ran": ran(results, module.SWEEPS),
        "setting": setting(results, module.SWEEPS),
        "missing": missing(results, module.SWEEPS),
    }


def is_empty(shown: Exhibit) -> bool:
    """Whether there is nothing in a table or in any panel of a plot."""
    if isinstance(shown, Table):
        return shown.frame.empty
    return not any(axes.lines or axes.images or axes.collections for f in shown.panels for axes in f.axes)


def unmeasured(empty: Sequence[Exhibit]) -> str:
    """What of an artefact there is nothing to show for, in words."""
    plots = [e.alt for e in empty if isinstance(e, Plot)]
    return "; ".join(plots) or ("a table" if empty else "")


def exhibit(made: Exhibit, figures: Path) -> dict[str, Any]:
    """A table, or a plot with its panels for the page and the names of its files."""
    if isinstance(made, Table):
        return {"table": made, "caption": made.caption}
    panels = [Markup(p) for p in render.save_plot(made, figures)]  # noqa: S704 matplotlib escapes the texts in them
    files = [f"figures/{made.name}-{i}" for i in range(1, len(panels) + 1)]
    return {"panels": panels, "files": files, "alt": made.alt, "caption": made.caption}


def missing(results: Results, sweeps: Sequence[str]) -> list[str]:
    """What is not there, a line for the seeds that miss for the same reason."""
    rows = results.missing(sweeps)
    made = []
    for (sweep, point, state), group in rows.groupby(["sweep", "point", "state"], sort=False):
        seeds = ", ".join(f"{s}" for s in sorted(group["seed"]))
        made.append(f"{sweep} {point}, seed{'s' if len(group) > 1 else ''} {seeds}: {state}")
    return made


def run_table(results: Results) -> Table:
    """Every run with what it cost."""
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


def environment() -> Environment:
    """The templates, with the formats that they use."""
    made = Environment(
        loader=PackageLoader("analysis", "templates"),
        autoescape=select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"latex": render.latex, "md": render.markdown, "shown": shown}
    made.filters |= {"to_latex": render.to_latex, "to_markdown": render.to_markdown}
    made.filters |= {"text_columns": render.text_columns}
    return made


def show(results: Results, names: Sequence[str]) -> None:
    """Print the claims, or artefacts by name, as tables."""
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
        for made in modules[name].exhibits(results, paper):
            if isinstance(made, Table) and not is_empty(made):
                console.print(render.to_terminal(made, modules[name].TITLE))
            elif isinstance(made, Plot) and not is_empty(made):
                console.print(f"{made.name}: {len(made.panels)} panels, {made.caption}")


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
    quiet()  # what a run trained with is built again, to count its FLOPs
    torch.set_num_threads(1)  # its forwards are small; beside a study, threads would wait for each other
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
