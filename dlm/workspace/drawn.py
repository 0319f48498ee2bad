"""Draws the panels of a specification from what runs logged offline: a dashboard without an account."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from dlm.workspace.panels import STEP
from dlm.workspace.records import Logged, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3


def offline_runs(folder: Path) -> list[Logged]:
    """The runs below a folder that logged offline. Of a run that did so in several parts, one id in all of them, the
    results are those of the last. Raises `ValueError` if there are none."""
    runs: dict[str, Logged] = {}
    for part in sorted(folder.glob("**/offline-run-*")):
        logged = read(part)
        if logged.run is None:
            continue
        if earlier := runs.get(logged.run.run_id):
            logged.history = earlier.history + logged.history
            logged.summary, logged.config = earlier.summary | logged.summary, earlier.config | logged.config
        runs[logged.run.run_id] = logged
    if not runs:
        raise ValueError(f"draw {str(folder)!r} holds no run that logged to W&B offline: name a folder of runs")
    return [*runs.values()]


def drawn(sections: Sequence[Mapping[str, Any]], runs: Sequence[Logged]) -> Iterator[tuple[str, Figure]]:
    """The name of each section, and its panels side by side: those that are drawn here and of which something was
    logged."""
    from matplotlib.figure import Figure

    for section in sections:
        panels = [draw for entry in section["panels"] if (draw := drawing(entry, runs))]
        if not panels:
            continue
        rows = -(-len(panels) // COLUMNS)
        figure = Figure(figsize=(4.2 * COLUMNS, 3.1 * rows), dpi=80, layout="constrained")
        axes = [*figure.subplots(rows, COLUMNS, squeeze=False).flat]
        for draw, ax in zip(panels, axes, strict=False):
            draw(ax)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        yield section["name"], figure


def drawing(entry: Mapping[str, Any], runs: Sequence[Logged]) -> Callable[[Axes], None] | None:
    """What draws a panel; None if it is of a kind that is not drawn, or nothing was logged for it."""
    ((kind, arguments),) = entry.items()
    return KINDS[kind](runs, **arguments) if kind in KINDS else None


def value_of(run: Logged, name: str) -> Any:
    """A result of a run or, of a name without a slash, a value of its config."""
    if "/" in name:
        return run.summary.get(name)
    value: Any = run.config
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def groups(runs: Sequence[Logged], by: str | None) -> dict[str, list[Logged]]:
    """The runs with the same value of a config key; each on its own without one."""
    found: dict[str, list[Logged]] = {}
    for run in runs:
        found.setdefault(str(value_of(run, by)) if by else run.run.run_id, []).append(run)
    return found


def lines(runs: Sequence[Logged], title: str, y: list[str], by: str | None = None, log_y: bool = False) -> Any:
    """A line for each run and metric. Several metrics have a colour each, one has a colour for each run or group."""
    found = [
        (group if len(y) == 1 else f"{group} {name}" if by else name, run.column(name))
        for group, members in groups(runs, by).items()
        for run in members
        for name in y
    ]
    found = [(label, [point for point in points if None not in point]) for label, points in found]
    if not any(points for _, points in found):
        return None

    def draw(ax: Axes) -> None:
        colours: dict[str, str] = {}
        for label, points in found:
            first = label not in colours
            (line,) = ax.plot(*zip(*points, strict=True) if points else ([], []), color=colours.get(label), lw=1.2)
            colours[label] = line.get_color()
            line.set_label(label if first else "_")
        ax.set(title=title, xlabel=STEP, yscale="log" if log_y else "linear")
        if len(colours) <= 8:
            ax.legend(fontsize=6)

    return draw


def scatter(
    runs: Sequence[Logged], x: str, y: str, title: str | None = None, best: bool = False, log_x: bool = False
) -> Any:
    found = [(value_of(run, x), value_of(run, y)) for run in runs]
    points = sorted((a, b) for a, b in found if isinstance(a, int | float) and isinstance(b, int | float))
    if not points:
        return None

    def draw(ax: Axes) -> None:
        xs, ys = zip(*points, strict=True)
        ax.scatter(xs, ys, s=20)
        if best:
            ax.step(xs, [max(ys[: n + 1]) for n in range(len(ys))], where="post", lw=1)
        ax.set(title=title or "", xlabel=x, ylabel=y, xscale="log" if log_x else "linear")

    return draw


def bars(runs: Sequence[Logged], title: str, metrics: list[str], by: str) -> Any:
    """The mean of the runs with the same value of a config key, and their standard deviation."""
    found = {
        (group, metric): [v for run in members if isinstance(v := value_of(run, metric), int | float)]
        for group, members in groups(runs, by).items()
        for metric in metrics
    }
    found = {key: values for key, values in found.items() if values}
    if not found:
        return None

    def draw(ax: Axes) -> None:
        names = [group if len(metrics) == 1 else f"{group} {metric}" for group, metric in found]
        ax.barh(names, [fmean(v) for v in found.values()], xerr=[pstdev(v) for v in found.values()], height=0.6)
        ax.set_title(title)
        ax.tick_params(axis="y", labelsize=6)

    return draw


def pictures(runs: Sequence[Logged], keys: list[str], title: str | None = None) -> Any:
    """The last picture of the last run that has one."""
    found = [points[-1][1]["path"] for run in runs for key in keys if (points := run.column(key))]
    if not found:
        return None

    def draw(ax: Axes) -> None:
        from matplotlib.image import imread

        ax.imshow(imread(found[-1]))
        ax.set_title(title or "")
        ax.set_axis_off()

    return draw


KINDS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (lines, scatter, bars, pictures)}
