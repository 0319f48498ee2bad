"""Render the study: `python -m analysis.report --runs runs --out reports/ablation` → index.html, index.md, figures.

Everything shown is read from finished runs; where there are none the report says so.
"""

from __future__ import annotations

import argparse
import base64
import math
import os
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, select_autoescape

from analysis.claims import Verdict, accuracy_verdict, drift_verdict
from analysis.figure2e import MEASURES, STYLES, drift_by_layer, figure2e, save
from analysis.runs import DOMAINS, tidy
from analysis.sweep import FINISHED, Point, Sweep, load_sweep
from analysis.table1 import MEASURED, parallel_table, table1
from dlm.runs import Run
from dlm.storage import write_atomically

Found = list[tuple[Point, Run]]
SWEEP = Path("sweeps/table1_attention.yaml")


def paper_numbers() -> dict[str, Any]:
    """What the paper prints, from `analysis/paper.yaml`."""
    return yaml.safe_load(resources.files("analysis").joinpath("paper.yaml").read_text(encoding="utf-8"))


def build_report(sweep: Sweep, runs_dir: Path, out: Path, command: str = "make ablation-report") -> Path:
    """Write the report's files to `out` and return its index.html. `command` is what makes it again."""
    states = [(point, point.state(runs_dir)) for point in sweep.points]
    found = [(point, Run(runs_dir / point.run)) for point, state in states if state == FINISHED]
    paper, runs, drift = paper_numbers(), tidy(found), drift_by_layer(found)
    out.mkdir(parents=True, exist_ok=True)
    table = table1(sweep, runs, paper["table1"])
    context = {
        "sweep": sweep,
        "command": command,
        "rendered": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "missing": [(point, state) for point, state in states if state != FINISHED],
        "notes": notes(found),
        "setup": setup(sweep, found, paper["setup"]),
        "table": table,
        "measured": MEASURED,
        "parent": table[0],
        "domains": DOMAINS,
        "parallel": parallel_table(sweep, runs),
        "verdicts": verdicts(found, drift, paper),
        "figures": figures(drift, sweep, out),
        "plotted": tuple(STYLES),
        "provenance": provenance(found),
    }
    for name, made in (("runs.csv", runs), ("drift.csv", drift)):
        if len(made):
            write_atomically(out / name, made.to_csv(index=False))
        else:
            (out / name).unlink(missing_ok=True)  # of an earlier report, whose runs are gone
    for name in ("index.html", "index.md"):
        write_atomically(out / name, environment().get_template(f"report{Path(name).suffix}.j2").render(context))
    return out / "index.html"


def environment() -> Environment:
    """The templates, with the formats that they use."""
    loader = PackageLoader("analysis", ".")
    made = Environment(loader=loader, autoescape=select_autoescape(["html.j2"]), trim_blocks=True, lstrip_blocks=True)
    made.filters["number"] = lambda value, digits=1: "" if absent(value) else f"{value:,.{digits}f}"
    made.filters["percent"] = lambda value: "" if absent(value) else f"{value:.0%}"
    made.filters["signed"] = lambda value: f"{value:+.2f}".replace("-", "−")
    return made


def absent(value: Any) -> bool:
    """Whether there is no number to print."""
    return value is None or math.isnan(value)


def verdicts(found: Found, drift: pd.DataFrame, paper: dict) -> list[Verdict]:
    """Every claim with its verdict."""
    accuracy = [accuracy_verdict(claim, found, paper["table1"]) for claim in paper["claims"]]
    return accuracy + [drift_verdict(claim, drift) for claim in paper["drift_claims"]]


def figures(drift: pd.DataFrame, sweep: Sweep, out: Path) -> list[dict[str, str]]:
    """Figure 2e by each measure, for a wide and a narrow page, as files beside the report and inlined for the page;
    none without runs."""
    plotted = drift if drift.empty else drift[drift["point"].isin(STYLES)]
    made = []
    for measure, name in MEASURES.items():
        figure = {"measure": name}
        for shape in ("wide", "narrow"):
            path = out / f"figure2e_{measure}{'_narrow' if shape == 'narrow' else ''}.png"
            if plotted.empty:
                path.unlink(missing_ok=True)
                continue
            save(figure2e(plotted, sweep.labels, measure, stacked=shape == "narrow"), path)
            data = base64.b64encode(path.read_bytes()).decode()
            figure |= {f"{shape}_file": path.name, shape: f"data:image/png;base64,{data}"}
        made.append(figure)
    return [] if plotted.empty else made


def setup(sweep: Sweep, found: Found, paper: dict[str, str]) -> list[tuple[str, str, str]]:
    """What differs from the paper: (what, there, here)."""
    config = sweep.points[0].config
    parent = config["model"].get("path") or config["model"]["_target_"]
    if found:
        parent = f"{found[0][1].record['parent']['source']}, {found[0][1].record['parameters']:,} parameters"
    decay = f"cosine to {config['optimizer'].get('min_lr_ratio', 1):g} of it"
    ours = {
        "parent": parent,
        "tokens": f"{sweep.tokens:,}, rows of {config['data'].get('length')}, doubled in row e",
        "block size": by_row(sweep, "block_size"),
        "learning rate": f"{by_row(sweep, 'lr')}, {decay}",
        "accuracy": "exact match on generated tasks: "
        + "; ".join(
            f"{name} ({', '.join(f.replace('_', ' ') for f in families)})" for name, families in DOMAINS.items()
        ),
    }
    return [(what, there, ours[what]) for what, there in paper.items()]


def by_row(sweep: Sweep, key: str) -> str:
    """A value of the config, and whose rows it is where they differ: `0.001 (b, c), 0.003 (h, i)`."""
    rows: dict[Any, list[str]] = {}
    for point in sweep.points:
        rows.setdefault(point.config[key], []).append(point.name)
    if len(rows) == 1:
        return f"{next(iter(rows)):g}"
    return ", ".join(f"{value:g} ({', '.join(dict.fromkeys(names))})" for value, names in rows.items())


def notes(found: Found) -> list[str]:
    """What a reader has to know before comparing the rows."""
    records = [run.record for _, run in found]
    said = []
    parents = {record["parent"]["fingerprint"] for record in records}
    if len(parents) > 1:
        said.append(
            f"The runs converted {len(parents)} different parents ({', '.join(sorted(parents))}): train all again."
        )
    commits = {record.get("commit") or "none" for record in records}
    if len(commits) > 1:
        said.append(f"The runs were made by {len(commits)} versions of the code: {', '.join(sorted(commits))}.")
    if found and len({point.seed for point, _ in found}) == 1:
        said.append(
            f"One seed ({found[0][0].seed}): intervals are over items, and what another seed would change is unknown."
        )
    return said


def provenance(found: Found) -> list[dict[str, Any]]:
    """Which run each number comes from: its id, code, versions, machine and cost."""
    return [
        {
            "point": point.name,
            "seed": point.seed,
            "run": run.id,
            "overrides": " ".join(point.overrides),
            "commit": record.get("commit") or "",
            "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
            "machine": f"{record['machine']['cpus']} CPU cores, {record['machine']['platform']}",
            "parent": "{source} (weights {fingerprint})".format(**record["parent"]),
            "tokens": record["tokens"],
            "minutes": record["train_seconds"] / 60,
            "ended": datetime.fromtimestamp(record["ended"], UTC).strftime("%Y-%m-%d"),
        }
        for point, run in found
        for record in [run.record]
    ]


def reproduce(sweep: Path, overrides: Sequence[str]) -> str:
    """The command that trains what is missing of a sweep."""
    if sweep != SWEEP:
        return shlex.join(["python", "-m", "analysis.study", f"sweeps/{sweep.name}", *overrides])
    return "make ablation-report" + (f" ARGS={shlex.quote(shlex.join(overrides))}" if overrides else "")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="the overrides the study was run with, if any")
    parser.add_argument("--sweep", type=Path, default=SWEEP, help="default: %(default)s")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("reports/ablation"), help="default: %(default)s")
    arguments = parser.parse_intermixed_args(argv)
    try:
        sweep = load_sweep(arguments.sweep, arguments.overrides)
        page = build_report(sweep, arguments.runs, arguments.out, reproduce(arguments.sweep, arguments.overrides))
    except ValueError as error:
        parser.error(str(error))
    print(f"{os.path.relpath(page)} and index.md beside it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
