"""What a reader sees over a point: its value, seeds, items and runs. The report adds the command that makes it."""

from __future__ import annotations

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from analysis.evidence.stats import Estimate

MARK, RUNS = "tip:", "runs: "  # what an artist's id begins with; what the line of the run ids begins with


def of_rows(rows: pd.DataFrame, measure: str, head: str, scale: float = 1.0) -> str:
    """The tip of the mean of `measure` over `rows`, one or more a seed: its values by seed, the items, the runs."""
    rows = rows.dropna(subset=[measure])
    by_seed = (scale * rows.groupby("seed")[measure].mean().astype(float)) if "seed" in rows else pd.Series(dtype=float)
    text = [head, f"mean {scale * rows[measure].astype(float).mean():.4g}"]
    if len(by_seed):
        text += [", ".join(f"seed {seed}: {value:.4g}" for seed, value in by_seed.items())]
    if f"{measure}_n" in rows and rows[f"{measure}_n"].notna().any():
        text += [f"{rows[f'{measure}_n'].iloc[0]:,.0f} items a seed"]
    return "\n".join(text + of_runs(rows.get("run", ())))


def of_estimate(value: Estimate, head: str, digits: int = 1) -> str:
    """The tip of an estimate: its interval, seeds, items and runs."""
    interval = "" if pd.isna(value.low) else f" ({value.low:,.{digits}f} to {value.high:,.{digits}f})"
    items = f" × {value.n:,} items" if value.n else ""
    counts = f"{value.seeds} seed{'s' if value.seeds > 1 else ''}{items}"
    return "\n".join([head, f"{value.mean:,.{digits}f}{interval}; {counts}", *of_runs(value.runs)]).replace("-", "−")


def of_runs(runs) -> list[str]:
    """The line with the ids of the distinct runs; none without any."""
    distinct = dict.fromkeys(str(run) for run in runs if not pd.isna(run))
    return [RUNS + ", ".join(distinct)] if distinct else []


def runs_in(tip: str) -> list[str]:
    """The run ids that a tip names."""
    lines = [line.removeprefix(RUNS) for line in tip.split("\n") if line.startswith(RUNS)]
    return lines[0].split(", ") if lines else []


def put(artist: Artist, text: str) -> None:
    """Give a drawn artist its tip; `analysis.pages.render.svg` makes it the artist's title."""
    artist.set_gid(MARK + text)


def over(axes: Axes, x: float, y: float, text: str) -> None:
    """Lay a tip over a point, as a spot that is larger than the point and is not seen."""
    put(axes.scatter([x], [y], s=90, alpha=0, linewidths=0, zorder=5), text)
