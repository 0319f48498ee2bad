"""Collects the runs of a study into the tables of its report (`analysis.tables.results`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.plan.sweep import Point, load_sweep
from analysis.tables.domains import domains, proportion
from analysis.tables.earlier import Earlier
from analysis.tables.flops import training_flops
from analysis.tables.measurements import Rows, families, outputs, tables_of
from analysis.tables.results import COLUMNS, DLM, FINISHED, PARENT, Results, columns, pack
from dlm.config.targets import name_of
from dlm.evaluation.drift import by_layer
from dlm.evaluation.interval import Z95
from dlm.runs.digest import digest
from dlm.runs.run import Run
from dlm.runs.storage import write_atomically

VALUES = ("block_size", "token_shift", "lr", "seed")
VALIDATED = {"val_nelbo": "val/nelbo"}
VALIDATED |= {f"val_nelbo_{kind}": f"val/nelbo_{kind}" for kind in ("answers", "prose")}
VALIDATED |= {f"val_bits_{kind}": f"val/bits_per_byte_{kind}" for kind in ("answers", "prose")}
FLOPS = "train_flops.json"  # in a run's folder; a flops.json there counts neither auxiliary losses nor rollouts
# Raised by reading a record, or a file beside it, with a missing or mistyped field.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError, OverflowError, OSError)


def collect(sweeps: Path, runs_dir: Path, overrides: Sequence[str] = (), earlier: Earlier | None = None) -> Results:
    """The tables of every point of every sweep in the folder `sweeps`, loaded with `overrides`. Runs and measurements
    missing from `runs_dir` are taken from `earlier` results.

    Raises `ValueError` if the folder holds no sweep, or one that cannot be loaded.
    """
    paths = sorted(sweeps.glob("*.yaml"))
    if not paths:
        raise ValueError(f"sweeps {str(sweeps)!r} holds no YAML: run this from the repository")
    rows: Rows = {name: [] for name in COLUMNS}
    seen: set[str] = set()
    for path in paths:
        for point in load_sweep(path, overrides).points:
            add_point(rows, path.stem, point, runs_dir, earlier or Earlier.none(), seen)
    return Results.of_rows(of_one_validation(rows))


def add_point(rows: Rows, sweep: str, point: Point, runs_dir: Path, earlier: Earlier, seen: set[str]) -> None:
    """Add a point's rows to `rows`, and those of its run unless the run is in `seen` (updated in place).

    A finished run whose files are malformed gets the state `unreadable` and the error; nothing is raised.
    """
    run, state = Run(runs_dir / point.run), point.state(runs_dir)
    tables: Rows = {}
    error = None
    if is_known := state != FINISHED and earlier.state(point) is not None:
        state = earlier.state(point)
    if state == FINISHED:
        try:
            tables = measurements(sweep, point, run, earlier)
            if run.id not in seen:
                of_run = earlier.tables_of_run(run.id) if is_known else tables_of_run(run)
                tables = {name: [*of_run.get(name, ()), *tables[name]] for name in COLUMNS}
            seen.add(run.id)
        except MALFORMED as problem:
            tables, state, error = {}, "unreadable", f"{type(problem).__name__}: {problem}"
    elif not is_known and state not in ("not trained", "damaged"):
        error = run.record.get("error")
    rows["points"].append(
        {"sweep": sweep, "point": point.name, "label": point.label, "seed": point.seed, "run": run.id}
        | {"values": json.dumps(point.values), "state": state, "error": error and str(error).strip().split("\n")[-1]}
    )
    for name, new in tables.items():
        rows[name] += new


def measurements(sweep: str, point: Point, run: Run, earlier: Earlier) -> Rows:
    """The rows of a point's evaluations, from its run's folder, else from `earlier`."""
    rows: Rows = {name: [] for name in COLUMNS}
    for evaluation in point.evaluations:
        path = run.folder / evaluation.file
        if path.exists():
            tables = tables_of(evaluation, json.loads(path.read_text(encoding="utf-8")))
        else:
            tables = earlier.tables_of(sweep, point, evaluation)
        ids = {"run": run.id, "for_sweep": sweep, "evaluation": evaluation.name, "file": evaluation.file}
        for name, new in tables.items():
            rows[name] += [ids | row for row in new]
    return rows


def tables_of_run(run: Run) -> Rows:
    """The rows of a run that belong to no sweep."""
    record = run.record
    drift = by_layer(pd.read_csv(run.folder / "drift.csv")).drop(columns="numel")
    return {
        "runs": [run_row(run, record)],
        "evaluations": list(final_evaluations(run, record)),
        "drift": drift.assign(run=run.id).to_dict("records"),
        "curves": list(curves(run, record)),
    }


def run_row(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """A run's row of the table `runs`: its options, cost and provenance."""
    config = record["config"]
    target = {g: name_of(config[g]["_target_"]) for g in ("attention", "masking", "loss", "trainable")}
    return {
        "run": run.id,
        **{key: config[key] for key in VALUES},
        **{f"{group}_name": name for group, name in target.items()},
        "auxiliary_name": " ".join(config.get("auxiliary") or ()) or "none",
        "continues": config["model"].get("run"),
        "canvas": config["attention"].get("canvas"),
        "masking_name": " ".join(filter(None, (target["masking"], half_life(config["masking"])))),
        "tokens": record["tokens"],
        "budget": asked(config),
        "length": config["data"].get("length"),
        "batch_size_train": config["data"].get("batch_size"),
        "parameters": record["parameters"],
        "source": record["parent"]["source"],
        "parent": record["parent"]["fingerprint"],
        "train_seconds": record["train_seconds"],
        "train_flops": flops(run, record),
        **{unit: record.get("budget", {}).get(unit) for unit in ("examples", "answer_tokens")},
        "validation": record.get("validation", 1),
        **{column: record["train"].get(name) for column, name in VALIDATED.items()},
        **{f"drift/{name}": value for name, value in record["drift"].items()},
        "machine": "{cpus} CPU cores, {platform}".format(**record["machine"]),
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "commit": record.get("commit"),
        "ended": record["ended"],
        "evaluated": digest(record["evaluation"]["settings"]),
    }


def asked(config: dict[str, Any]) -> str | None:
    """The budget that a config asks for in another unit than tokens; None if it counts tokens."""
    budget = config.get("budget") or {}
    return None if budget.get("unit", "tokens") == "tokens" else f"{budget['amount']:g} {budget['unit']}"


def half_life(masking: dict[str, Any]) -> str:
    """The half-life of a masking config, "" if it has none."""
    return f"{masking['half_life']:g}" if "half_life" in masking else ""


def flops(run: Run, record: dict[str, Any]) -> float | None:
    """The FLOPs of a run's training, of its record or counted and cached in its folder; None if they cannot be
    counted."""
    if "budget" in record:
        return record["budget"]["flops"]
    path = run.folder / FLOPS
    if not path.exists():
        write_atomically(path, json.dumps(training_flops(record["config"], record["steps"])))
    return json.loads(path.read_text(encoding="utf-8"))


def curves(run: Run, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the validation by the number of training tokens."""
    path = run.folder / "metrics.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    for name in VALIDATED.values():
        if name in table:
            for step, value in table.dropna(subset=[name])[["step", name]].itertuples(index=False):
                tokens = round(record["tokens"] * (step + 1) / record["steps"])
                yield {"run": run.id, "tokens": tokens, "metric": name, "value": value}


def of_one_validation(rows: Rows) -> Rows:
    """The tables, in which only runs of the newest version of the validation have its numbers: those of others are of
    other tokens."""
    versions = {row["run"]: 1 if pd.isna(row.get("validation")) else row["validation"] for row in rows["runs"]}
    old = {run for run, version in versions.items() if version < max(versions.values(), default=1)}
    nothing = dict.fromkeys(VALIDATED)
    runs = [row | nothing if row["run"] in old else row for row in rows["runs"]]
    return rows | {"runs": runs, "curves": [row for row in rows["curves"] if row["run"] not in old]}


def final_evaluations(run: Run, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the evaluation at the end of training, one per model and decoding setting."""
    items = pd.read_csv(run.folder / "items.csv")
    evaluation = record["evaluation"]
    for model in (PARENT, DLM):
        scores = evaluation[model]
        for setting in scores["generation"]:
            if "decoding" in setting:  # asked for beside what every run is evaluated with
                continue
            name = setting["name"]
            answered = items[items["setting"] == name] if model == DLM else items.head(0)
            yield {
                "run": run.id,
                "for_sweep": "",
                "evaluation": "",
                "model": model,
                "setting": name,
                **{key: setting[key] for key in ("threshold", "tpf", "nfe")},
                **outputs(setting),
                "tokens_per_second": speed(evaluation, model, name),
                **columns("accuracy", *(setting[key] for key in ("accuracy", "low", "high", "n"))),
                **domains(setting["families"]),
                **proportion("cloze", scores["cloze"], scores["cloze_items"]),
                **bits_per_byte(scores["likelihood"]),
                "correct": pack(answered["correct"]) if len(answered) else None,
                "families": families(answered),
            }


def speed(evaluation: dict[str, Any], model: str, setting: str) -> float | None:
    """Tokens per second; None if not timed."""
    return (evaluation.get("throughput") or {}).get(PARENT if model == PARENT else setting)


def bits_per_byte(likelihood: dict[str, float]) -> dict[str, float]:
    """The bits per byte of held-out prose with their interval; the recorded standard error is in nats, which are
    proportional to them."""
    value = likelihood["bits_per_byte"]
    half = Z95 * likelihood["standard_error"] * value / likelihood["nats"]
    return columns("bits_per_byte", value, value - half, value + half, likelihood["tokens"])
