"""The results of a run as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlm.runs.run import Run


def report(run: Run) -> list[Table]:
    """The results of a run as tables for the terminal; [] if it was not evaluated."""
    record = run.record
    evaluation = record["evaluation"]
    if not evaluation:
        return []
    parent, dlm, speed = evaluation["parent"], evaluation["dlm"], evaluation["throughput"]
    # Text, wherever something stands that is not ours: rich would take brackets for markup.
    title = Text(f"run {run.id}: {record['parent']['source']} → dLM, {record['tokens']:,} tokens")
    table = Table(title=title)
    table.add_column("")
    table.add_column("exact match [95 %]", no_wrap=True)
    for column in ("tokens/\nforward", "forwards/\nanswer", "tokens/s\n(batch 1)"):
        table.add_column(column, justify="right")
    for model, result in (("parent", parent), ("dLM", dlm)):
        for g in result["generation"]:
            rate = speed["parent" if model == "parent" else g["name"]]
            interval = f"{g['accuracy']:.1%} [{g['low']:.1%}, {g['high']:.1%}]"
            table.add_row(Text(label(model, g)), interval, f"{g['tpf']:.2f}", f"{g['nfe']:.1f}", f"{rate:.0f}")
    table.caption = f"{dlm['generation'][0]['n']} test items; every forward is counted"
    text = Table(title="held-out prose")
    for column in ("", "nats/token", "bits/byte", f"multiple choice (n={dlm['cloze_items']})"):
        text.add_column(column)
    for name, result in (("parent, NLL", parent), ("dLM, NELBO", dlm)):
        nats = result["likelihood"]
        text.add_row(
            name,
            f"{nats['nats']:.3f} ± {nats['standard_error']:.3f}",
            f"{nats['bits_per_byte']:.3f}",
            f"{result['cloze']:.1%}",
        )
    return [table, family_table(parent, dlm), text, drift_table(record["drift"])]


def label(model: str, setting: dict[str, Any]) -> str:
    """The name of a decoding setting in a table: `dLM, TPF≈2 (τ=0.8)`, with τ the threshold."""
    if model == "parent":
        return model
    threshold = None if "decoding" in setting else setting["threshold"]  # then its name says it
    return f"{model}, {setting['name']}" + (f" (τ={threshold})" if threshold is not None else "")


def family_table(parent: dict, dlm: dict) -> Table:
    """Exact match per task family."""
    columns = [("parent", parent["generation"][0])] + [(label("dLM", g), g) for g in dlm["generation"]]
    table = Table(title="exact match per family")
    table.add_column("")
    for name, _ in columns:
        table.add_column(Text(name))
    for family in dlm["generation"][0]["families"]:
        table.add_row(family, *(f"{g['families'][family]['accuracy']:.0%}" for _, g in columns))
    return table


def drift_table(drift: dict[str, float]) -> Table:
    """Weight change against the parent."""
    table = Table(title="weight drift")
    for column in ("", "mean |ΔW|", "‖ΔW‖ / ‖W‖", "1 − cos"):
        table.add_column(column)
    for kind in sorted({name.split("/")[0] for name in drift}):
        values = (drift.get(f"{kind}/{m}") for m in ("mean_abs", "relative", "one_minus_cos"))
        table.add_row(kind, *("—" if v is None else f"{v:.3g}" for v in values))
    return table


def show(run: Run) -> None:
    """Print the results of a run."""
    console = Console()
    for table in report(run):
        console.print(table)
