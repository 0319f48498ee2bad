"""The result of a training benchmark as tables, at most 100 columns wide."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from dlm.bench.peer import DLLM
from dlm.evaluation.timing import with_range

OURS, AGAIN, NAIVE, AR = "ours", "ours again", "naive", "AR"


def times_table(result: dict[str, Any]) -> Table:
    """Times and their ratios."""
    s, seconds = result["settings"], result["summary"]
    same = ", ".join([OURS, NAIVE] + [DLLM] * (DLLM in result["counts"]))
    table = Table(
        title=f"Training step: L {s['length']}, batch {s['batch_size']}, block {s['block_size']}; "
        f"median (range) of {len(result['seconds'][OURS])}",
        caption=f"{same}: the same loss and gradients (largest relative error "
        f"{result['gate']['max_relative_error']:.1e}, at most {result['gate']['tolerance']:g}).\n"
        f"ours prepares a batch on the CPU in {seconds['prepare']['median'] * 1e3:.1f} ms, outside the step.",
    )
    for column, justify in (
        ("arm", "left"),
        ("ms", "right"),
        ("tokens/s", "right"),
        ("time / ours", "right"),
        ("time / AR", "right"),
    ):
        table.add_column(column, justify=justify, no_wrap=True)
    for name, rate in result["tokens_per_second"].items():
        ms = {k: v * 1e3 for k, v in seconds[name].items()}
        ratios = (with_range(result[key][name]) for key in ("time_over_ours", "time_over_ar"))
        table.add_row(name, with_range(ms, 1), f"{rate:,.0f}", *ratios)
    return table


def counts_table(result: dict[str, Any]) -> Table:
    """Work and memory."""
    counts, mfu = result["counts"], result["useful_mfu"]
    blind = any(c["flop_executed"] and c["flop_executed"]["attention"] is None for c in counts.values())
    measured = all(c["peak_bytes"] for c in counts.values())
    columns = ["arm", "rows", "head rows", "logits MB", "GFLOP", "useful"]
    columns += ["useful MFU"] * bool(mfu) + ["peak GB", "/ ours"] * measured
    table = Table(
        title="Work of a step (useful: the GFLOP that it needs)",
        caption="* without attention: the counter cannot see a compiled kernel" if blind else None,
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    for name, c in counts.items():
        useful = "–" if c["flop_useful"] is None else f"{c['flop_useful'] / 1e9:,.2f}"
        cells = [
            name,
            f"{c['rows_network']:,}",
            f"{c['rows_head']:,}",
            f"{c['logits_bytes'] / 1e6:,.1f}",
            executed_gflop(c["flop_executed"]),
            useful,
        ]
        cells += [f"{mfu[name]:.1%}" if name in mfu else "–"] * bool(mfu)
        if measured:
            cells += [f"{c['peak_bytes'] / 1e9:.2f}", f"{c['peak_bytes'] / counts[OURS]['peak_bytes']:.2f}"]
        table.add_row(*cells)
    return table


def executed_gflop(flop: dict[str, Any] | None) -> str:
    """GFLOP, with a star if attention is not included; a dash for a peer, whose FLOP are not counted."""
    if flop is None:
        return "–"
    return f"{(flop['linear'] + (flop['attention'] or 0)) / 1e9:,.2f}" + "*" * (flop["attention"] is None)
