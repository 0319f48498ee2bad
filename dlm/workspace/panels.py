"""Panels of Weights & Biases from plain values: one function for every kind of panel that a specification may name.

A name with a slash in it is a metric, a name without one is a value of the config: `eval/tpf4/accuracy`, `block_size`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

STEP = "tokens"  # the one metric without a slash


def panel(entry: Mapping[str, Any]) -> Any:
    """The panel of an entry `{kind: {argument: value, ...}}`. Raises `ValueError` for an unknown kind or argument."""
    (kind, arguments), *others = entry.items() if isinstance(entry, Mapping) and entry else [(None, {})]
    if kind not in KINDS or others:
        raise ValueError(f"workspace: a panel is one of {', '.join(KINDS)} with its arguments, and {entry!r} is none")
    try:
        return KINDS[kind](**arguments or {})
    except TypeError as error:
        raise ValueError(f"workspace: a panel {kind} takes other arguments: {error}") from error


def named(entry: Any) -> Iterator[str]:
    """The metrics and config values that an entry of a specification names, at any depth."""
    if isinstance(entry, Mapping):
        for key, value in entry.items():
            if key not in TEXTS:
                yield from named(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from named(value)
    elif isinstance(entry, str):
        yield entry


TEXTS = ("title", "text", "markdown", "name", "sweep")  # arguments that are for readers


def reports():
    import wandb_workspaces.reports.v2 as module

    return module


def of_run(name: str) -> Any:
    """A result or a value of the config, for a plot with a point or a bar for each run."""
    wr = reports()
    return wr.SummaryMetric(name) if "/" in name else wr.Config(name)


def grouping(by: str | None) -> dict[str, Any]:
    """The mean of the runs with the same value of a config key, and their spread."""
    if by is None:
        return {}
    return {"groupby": reports().Config(by), "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}


def parallel(columns: list[str], log: list[str] | None = None) -> Any:
    """Parallel coordinates: a line for each run through the values of its config and its results."""
    wr = reports()
    axes = [wr.ParallelCoordinatesPlotColumn(of_run(name), log=name in (log or ()) or None) for name in columns]
    return wr.ParallelCoordinatesPlot(columns=axes)


def importance(of: str) -> Any:
    """Which values of the config go with a result."""
    return reports().ParameterImportancePlot(with_respect_to=of)


def bars(title: str, metrics: list[str], by: str) -> Any:
    """A bar for every value of a config key: the mean of its runs, with their standard deviation."""
    return reports().BarPlot(title=title, metrics=metrics, **grouping(by))


def scatter(x: str, y: str, title: str | None = None, best: bool = False, log_x: bool = False) -> Any:
    """A point for each run. `best` draws the frontier: the best so far along x."""
    return reports().ScatterPlot(title=title, x=of_run(x), y=of_run(y), running_ymax=best or None, log_x=log_x or None)


def lines(title: str, y: list[str], by: str | None = None, log_y: bool = False) -> Any:
    """Metrics over the tokens of training, of each run or averaged over those with the same value of a config key."""
    return reports().LinePlot(title=title, x=STEP, y=y, log_y=log_y or None, **grouping(by))


def pictures(keys: list[str], title: str | None = None) -> Any:
    """Pictures that runs have sent, by step."""
    return reports().MediaBrowser(title=title, media_keys=keys, num_columns=2)


def rows(of: str) -> Any:
    """The rows of a table, of all runs that are shown."""
    return reports().WeavePanelSummaryTable(table_name=of)


def compare() -> Any:
    """The config and the results of the runs side by side, where they differ."""
    return reports().RunComparer(diff_only="split")


def text(markdown: str) -> Any:
    return reports().MarkdownPanel(markdown=markdown)


KINDS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (parallel, importance, bars, scatter, lines, pictures, rows, compare, text)
}
