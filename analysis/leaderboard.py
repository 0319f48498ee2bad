"""The leaderboard of conversions: `python -m analysis.leaderboard [override ...] [--out reports/leaderboard]`.

Collects the runs of the rows (the points of `sweeps/leaderboard/*.yaml`) into `results.json`, keeping what it holds of
runs that are no longer in the runs folder, and renders `index.html`, `index.md` and `figures/` beside it. `--committed`
renders what is there.

`verify ROW seed=N` trains a row once more with a seed that it was not made with, says whether the outcome is one that
its own seeds make likely, and adds it to `verified.json`.

Rows are trained by `python -m analysis.study sweeps/leaderboard/*.yaml` (`make leaderboard RUN=1`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from analysis.evidence.frontier import next_seed
from analysis.pages.environment import environment
from analysis.pages.leaderboard import Standing, exhibits, standings
from analysis.pages.provenance import code_facts, command, quantity, training_facts
from analysis.pages.sections import exhibit_context, is_empty
from analysis.plan.sweep import load_sweep
from analysis.tables.collect import collect
from analysis.tables.earlier import Earlier
from analysis.tables.results import COLUMNS, FINISHED, Results
from dlm.config.folders import shipped
from dlm.console import quiet
from dlm.runs.storage import write_atomically

FOLDER = "sweeps/leaderboard"
OUT = Path("reports/leaderboard")
LISTED, VERIFIED = "results.json", "verified.json"
REPRODUCED, LOWER, HIGHER, TOO_FEW = "reproduced", "lower", "higher", "one listed seed cannot say"


def rows_folder() -> Path:
    """The folder of the rows: that of the working directory, else that of the package."""
    return Path(FOLDER) if Path(FOLDER).is_dir() else shipped("sweeps") / "leaderboard"


def loaded(path: Path) -> Results:
    """The results of a file; empty if it does not exist."""
    return Results.load(path) if path.exists() else Results.of_rows({})


def of_runs(results: Results, runs: set[str]) -> Results:
    """The tables with only what belongs to these runs."""
    return Results(**{n: table[table["run"].isin(runs)] for n in COLUMNS for table in [getattr(results, n)]})


def merged(older: Results, newer: Results) -> Results:
    """Both results; of a run that both have, what the newer ones have."""
    kept = of_runs(older, set(older.points["run"]) - set(newer.points["run"]))
    both = {n: [t for t in (getattr(kept, n), getattr(newer, n)) if len(t)] for n in COLUMNS}
    return Results.of_rows({n: pd.concat(tables).to_dict("records") if tables else [] for n, tables in both.items()})


def finished(results: Results) -> Results:
    """The results of the finished points alone."""
    return of_runs(results, set(results.points.loc[results.points["state"] == FINISHED, "run"]))


def render_board(results: Results, verified: Results, out: Path) -> Path:
    """Write the pages and figures, a pure function of the results, to the folder `out`; returns the path of
    index.html."""
    made_by = partial(command, results, list(results.points["sweep"].unique()), folder=FOLDER)
    shown = [e for e in exhibits(results, verified) if not is_empty(e)]
    contexts = [exhibit_context(e, "board", i, made_by, out / "figures") for i, e in enumerate(shown)]
    places, flops = standings(results), results.runs["train_flops"].astype(float)
    context = {
        "rows": len(places),
        "with_runs": sum(place.area is not None for place in places),
        "budget": quantity(flops.median(), "FLOP") if len(flops) else "the scale's FLOPs",
        "sweeps": sorted(results.points["sweep"].unique()),
        "exhibits": contexts,
        "facts": training_facts(results, results.points["sweep"].unique()) + code_facts(results),
    }
    for page in ("index.html", "index.md"):
        template = environment().get_template(f"leaderboard{Path(page).suffix}.j2")
        write_atomically(out / page, template.render(context))
    return out / "index.html"


def verify(row: str, seed: int, arguments: argparse.Namespace) -> str:
    """Train a row with another seed, and say how the outcome compares with those of its own. Raises `ValueError` for an
    unknown row, for a seed that the row was made with, and if the run does not finish."""
    overrides = [*arguments.overrides, f"seed={seed}"]
    sweeps = {path: load_sweep(path, overrides) for path in sorted(rows_folder().glob("*.yaml"))}
    matches = [(path, p) for path, sweep in sweeps.items() for p in sweep.points if p.name in (row, f"recipe={row}")]
    if not matches:
        names = "; ".join(p.name for sweep in sweeps.values() for p in sweep.points)
        raise ValueError(f"{row!r} is no row of the leaderboard: choose one of {names}")
    path, point = matches[0]
    listed = place_of(loaded(arguments.out / LISTED), path.stem, point.name)
    if seed in listed.areas:
        raise ValueError(f"seed={seed} is one that {point.name} was made with: name another than {seeds(listed)}")
    study = [sys.executable, "-m", "analysis.study", str(path), "--point", point.name, "--jobs", str(arguments.jobs)]
    subprocess.run([*study, "--runs", str(arguments.runs), *overrides], check=False)  # noqa: S603 our own command
    new = finished(collect(rows_folder(), arguments.runs, overrides))
    other = place_of(new, path.stem, point.name)
    if other.area is None:
        raise ValueError(f"{point.name} with seed={seed} did not finish: the lines above say why")
    merged(loaded(arguments.out / VERIFIED), new).save(arguments.out / VERIFIED)
    return comparison(listed, other)


def place_of(results: Results, sweep: str, point: str) -> Standing:
    """The standing of a row; without runs if the results have none."""
    places = (place for place in standings(results) if (place.sweep, place.point) == (sweep, point))
    return next(places, Standing(sweep, point, point))


def seeds(place: Standing) -> str:
    return ", ".join(f"{s}" for s in place.areas)


def comparison(listed: Standing, other: Standing) -> str:
    """The outcome of the seed `other`, beside those listed."""
    (seed, area), expected = next(iter(other.areas.items())), next_seed(list(listed.areas.values()))
    said = f"{other.point}, seed {seed}: area {area:.1f} % of the parent's accuracy"
    if not listed.areas:
        return f"{said}; no run of its own is listed"
    own = ", ".join(f"{s}: {a:.1f}" for s, a in listed.areas.items())
    if expected is None:
        return f"{said}; listed {own}: {TOO_FEW}"
    verdict = LOWER if area < expected[0] else HIGHER if area > expected[1] else REPRODUCED
    return f"{said}; listed {own}, so that 95 % of seeds lie in {expected[0]:.1f} to {expected[1]:.1f}: {verdict}"


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("overrides", nargs="*", help="verify ROW seed=N; the overrides of the rows, if any")
    arguments.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder (default: %(default)s)")
    arguments.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    arguments.add_argument("--jobs", type=int, default=1, help="of verify (default: %(default)s)")
    arguments.add_argument("--committed", action="store_true", help="render the results.json that is in --out")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_intermixed_args(argv)
    quiet()
    torch.set_num_threads(1)
    path = arguments.out / LISTED
    try:
        if arguments.overrides[:1] == ["verify"]:
            row, seed = asked(arguments)
            print(verify(row, seed, arguments))
        elif not arguments.committed:
            collect(rows_folder(), arguments.runs, arguments.overrides, Earlier(loaded(path))).save(path)
        page = render_board(Results.load(path), loaded(arguments.out / VERIFIED), arguments.out)
    except ValueError as error:
        parser().error(str(error))
    print(f"{os.path.relpath(page)}, index.md and {LISTED} beside it")
    return 0


def asked(arguments: argparse.Namespace) -> tuple[str, int]:
    """The row and the seed to verify, which are taken out of the overrides. Raises `ValueError` without either."""
    _, *rest = arguments.overrides
    given = [o for o in rest if o.startswith("seed=")]
    row = next((o for o in rest if o not in given), None)
    if row is None or len(given) != 1 or not given[0].removeprefix("seed=").isdigit():
        raise ValueError("verify needs a row and a seed of your choice: verify small_budget seed=1234")
    arguments.overrides = [o for o in rest if o != row and o not in given]
    return row, int(given[0].removeprefix("seed="))


if __name__ == "__main__":
    raise SystemExit(main())
