"""Render the study: `python -m analysis.report --runs runs --out reports/ablation` → index.html, index.md, figures.

Everything shown is read from finished runs; where there are none the report says so.
"""

from __future__ import annotations

import argparse
import base64
import math
import os
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, select_autoescape

from analysis.claims import Verdict, accuracy_verdict, drift_verdict
from analysis.figure2e import MEASURES, drift_by_layer, figure2e, save
from analysis.runs import tidy
from analysis.sweep import Point, Sweep, load_sweep
from analysis.table1 import parallel_table, table1
from dlm.runs import Run, write_atomically

COMMAND = "make ablation-report"


def paper_numbers() -> dict[str, Any]:
    """What the paper prints, from `analysis/paper.yaml`."""
    return yaml.safe_load(resources.files("analysis").joinpath("paper.yaml").read_text(encoding="utf-8"))


def build_report(sweep: Sweep, runs_dir: Path, out: Path) -> Path:
    """Write the report's files to `out` and return its index.html."""
    found = [(point, run) for point in sweep.points if (run := point.find(runs_dir))]
    paper, runs, drift = paper_numbers(), tidy(found), drift_by_layer(found)
    out.mkdir(parents=True, exist_ok=True)
    context = {
        "sweep": sweep,
        "command": COMMAND,
        "rendered": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "missing": [p for p in sweep.points if p.find(runs_dir) is None],
        "paper": paper,
        "table": records(table1(sweep, runs, paper["table1"])),
        "parallel": records(parallel_table(sweep, runs)),
        "verdicts": verdicts(found, drift, paper),
        "figures": figures(drift, sweep, out),
        "provenance": provenance(found),
    }
    if len(runs):
        write_atomically(out / "runs.csv", runs.to_csv(index=False))
        write_atomically(out / "drift.csv", drift.to_csv(index=False))
    for name in ("index.html", "index.md"):
        write_atomically(out / name, environment().get_template(f"report{Path(name).suffix}.j2").render(context))
    return out / "index.html"


def environment() -> Environment:
    """The templates, with the formats that they use."""
    loader = PackageLoader("analysis", ".")
    made = Environment(loader=loader, autoescape=select_autoescape(["html.j2"]), trim_blocks=True, lstrip_blocks=True)
    made.filters["number"] = lambda value, digits=1: "" if absent(value) else f"{value:,.{digits}f}"
    made.filters["percent"] = lambda value: "" if absent(value) else f"{value:.0%}"
    return made


def absent(value: Any) -> bool:
    """Whether there is nothing to print."""
    return value is None or (not isinstance(value, str) and math.isnan(value)) or value == ""


def records(table: pd.DataFrame) -> list[dict]:
    """A table as rows for a template."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def verdicts(found: list[tuple[Point, Run]], drift: pd.DataFrame, paper: dict) -> list[Verdict]:
    """Every claim with its verdict."""
    accuracy = [accuracy_verdict(claim, found, paper["table1"]) for claim in paper["claims"]]
    return accuracy + [drift_verdict(claim, drift) for claim in paper["drift_claims"]]


def figures(drift: pd.DataFrame, sweep: Sweep, out: Path) -> list[dict[str, str]]:
    """Figure 2e by each measure, as files beside the report and inlined for the page; none without runs."""
    made = []
    for measure, name in MEASURES.items() if len(drift) else ():
        path = out / f"figure2e_{measure}.png"
        save(figure2e(drift, sweep.labels, measure), path)
        data = base64.b64encode(path.read_bytes()).decode()
        made.append({"measure": name, "file": path.name, "data": f"data:image/png;base64,{data}"})
    return made


def provenance(found: list[tuple[Point, Run]]) -> list[dict[str, Any]]:
    """Which run each number comes from: its id, code, versions, machine and cost."""
    return [
        {
            "point": point.name,
            "seed": point.seed,
            "run": run.id,
            "overrides": " ".join(point.overrides),
            "commit": record.get("commit") or "",
            "versions": record["versions"],
            "machine": record["machine"],
            "parent": record["parent"],
            "tokens": record["tokens"],
            "minutes": record["train_seconds"] / 60,
            "ended": datetime.fromtimestamp(record["ended"], UTC).strftime("%Y-%m-%d"),
        }
        for point, run in found
        for record in [run.record]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="the overrides the study was run with, if any")
    parser.add_argument("--sweep", type=Path, default=Path("sweeps/table1_attention.yaml"), help="default: %(default)s")
    parser.add_argument("--tokens", type=int, help="the budget the study was run with, if not the sweep's own")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("reports/ablation"), help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        sweep = load_sweep(arguments.sweep, arguments.overrides, arguments.tokens)
    except ValueError as error:
        parser.error(str(error))
    page = build_report(sweep, arguments.runs, arguments.out)
    print(f"{os.path.relpath(page)} and index.md beside it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
