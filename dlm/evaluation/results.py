"""What the loggers of a run are sent of its results: numbers under flat keys, and tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dlm.data import tasks
from dlm.evaluation.suite import ONE_TOKEN
from dlm.logger.base import RunLogger
from dlm.runs.run import Run


def send_results(loggers: Sequence[RunLogger], run: Run) -> None:
    """Send the results of a finished run. They are sent whole by whatever adds to a run, as what is logged offline in
    parts replaces the results of the part before."""
    if not loggers:
        return
    numbers, tables = results(run.record), dict(result_tables(run))
    for logger in loggers:
        for name, rows in tables.items():
            logger.log_table(name, rows)
        logger.log_summary(numbers)


def send_measurements(loggers: Sequence[RunLogger], run: Run, measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Send the results of measurements, JSON values by the file that keeps them: their numbers as `measured/<name of
    the file>/…`, their lists of rows as tables; and the results of the run."""
    values = dict(pair for file, result in measured.items() for pair in flat(result, f"measured/{Path(file).stem}"))
    send_results(loggers, run)
    for logger in loggers:
        for key, rows in values.items():
            if isinstance(rows, list):
                logger.log_table(key, pd.DataFrame(rows))
        logger.log_summary({key: float(value) for key, value in values.items() if is_number(value)})


def results(record: Mapping[str, Any]) -> dict[str, float]:
    """The results of a record by flat keys: the last of `train/`, `val/` and `drift/`, `run/` for what it took, and
    `eval/` (see `of_evaluation`), and `benchmarks/<model>/<task>/…`."""
    values = dict(record.get("train", {})) | {f"drift/{name}": value for name, value in record.get("drift", {}).items()}
    values |= {
        f"run/{name}": record.get(name) for name in ("tokens", "train_seconds", "parameters", "steps", "diverged")
    }
    if evaluation := record.get("evaluation"):
        values |= dict(of_evaluation(evaluation))
    values |= dict(flat(record.get("benchmarks", {}), "benchmarks"))
    return {name: float(value) for name, value in values.items() if is_number(value)}


def of_evaluation(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`eval/<setting>/accuracy`, `…/low`, `…/high`, `…/tpf`, `…/nfe`, `…/tokens_per_second` and so on of every setting
    of the dLM's decoding (see `key_of`) and of its `parent`, the accuracy of every family as `…/families/<family>`, and
    `eval/<model>/nats`, `…/bits_per_byte`, `…/cloze` of both."""
    speed = evaluation["throughput"]
    for model in ("parent", "dlm"):
        of_model = evaluation[model]
        yield from flat(of_model["likelihood"], f"eval/{model}")
        yield f"eval/{model}/cloze", of_model["cloze"]
        for row in of_model["generation"]:
            place = f"eval/{key_of(row['name']) if model == 'dlm' else model}"
            yield from flat({key: value for key, value in row.items() if key not in ("decoding", "families")}, place)
            for family, of_family in row["families"].items():
                yield f"{place}/families/{family}", of_family["accuracy"]
            yield f"{place}/tokens_per_second", speed.get(row["name"] if model == "dlm" else model)


def key_of(setting: str) -> str:
    """The name of a setting in a key, which can be typed: `TPF≈2` → `tpf2`, `threshold threshold=0.9` →
    `threshold_threshold_0_9`."""
    name = "one token" if setting == ONE_TOKEN else setting.replace("≈", "")
    return re.sub(r"\W+", "_", name.lower())


def flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The numbers of nested values and their lists of rows, each under the path to it."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}/{key}")
        elif is_number(value) or (isinstance(value, list) and value and isinstance(value[0], Mapping)):
            yield f"{prefix}/{key}", value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def result_tables(run: Run) -> Iterator[tuple[str, pd.DataFrame]]:
    """`eval/items`: every decoded item with its prompt and its answer. `eval/trace`: when each position of a block is
    committed, and how confidently."""
    evaluation = run.record.get("evaluation")
    if not evaluation:
        return
    items, settings = pd.read_csv(run.folder / "items.csv", keep_default_na=False), evaluation["settings"]
    examples = tasks.evaluation_set("test", settings["tasks_per_family"], families=settings.get("families"))
    number = items.groupby("setting").cumcount()
    items.insert(1, "prompt", of_examples((e.prompt for e in examples), number))
    items.insert(2, "answer", of_examples((e.answer for e in examples), number))
    yield "eval/items", items
    yield "eval/trace", pd.DataFrame(json.loads((run.folder / "trace.json").read_text(encoding="utf-8")))


def of_examples(texts: Iterable[str], number: pd.Series) -> list[str]:
    """The text of the example that each item answers."""
    all_texts = list(texts)
    return [all_texts[n] for n in number]
