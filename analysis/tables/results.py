"""Tidy tables of every run of a study, in one file that can be shared without the runs.

The report reads only these tables, so a results file renders the same report as the runs it was collected from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from dlm.runs.storage import write_atomically

FINISHED = "finished"
PARENT, DLM = "parent", "dlm"
MEASURED_FOR = ("for_sweep", "evaluation")  # the sweep and its evaluation; both "" for the one that ends every run
# Columns that identify a measurement: its run, what it was measured for, and its file in the run's folder.
IDS = ("run", *MEASURED_FOR, "file")
INTERVALS = tuple(f"accuracy_{end}" for end in ("low", "high", "n"))
# The columns of every table, including empty ones.
COLUMNS: dict[str, tuple[str, ...]] = {
    "points": ("sweep", "point", "label", "values", "seed", "run", "state", "error"),
    "runs": (
        *("run", "seed", "attention_name", "masking_name", "loss_name", "trainable_name", "block_size", "token_shift"),
        *("lr", "tokens", "parameters", "source", "parent", "train_seconds", "train_flops", "val_nelbo"),
        *("machine", "versions", "commit", "ended", "auxiliary_name", "continues", "evaluated"),
        *(
            "canvas",
            "budget",
            "examples",
            "answer_tokens",
            "validation",
            "val_nelbo_answers",
            "val_nelbo_prose",
            "val_bits_answers",
            "val_bits_prose",
        ),
    ),
    "evaluations": (
        *(*IDS, "model", "setting", "decoder", "threshold", "target", "eval_block_size", "batch_size"),
        *("tpf", "nfe", "tokens_per_second", "accuracy", *INTERVALS, "code", "maths", "symbols", "cloze"),
        *("sequential", "parallel", "right_steps"),
        *("bits_per_byte", "correct", "families", "tokens_per_row", "repetitive", "empty", "endless"),
    ),
    "drift": ("run", "layer", "kind", "mean_abs", "relative", "one_minus_cos"),
    "positions": (*IDS, "model", "quantity", "position", "value", "n"),
    "steps": (*IDS, "position", "step", "confidence", "committed", "token"),
    "curves": ("run", "tokens", "metric", "value"),
    "scores": (*IDS, "model", "task", "score"),
}
# Columns that a results file of an older version may lack; they are then empty.
LATER = {"runs": {"auxiliary_name", "continues", "evaluated", "validation", "budget", "examples"}}
LATER["runs"] |= {"answer_tokens", "canvas"}
LATER["runs"] |= {f"val_{measure}_{kind}" for measure in ("nelbo", "bits") for kind in ("answers", "prose")}
LATER |= {
    "evaluations": {
        "tokens_per_row",
        "repetitive",
        "empty",
        "endless",
        "file",
        "families",
        "sequential",
        "parallel",
        "right_steps",
    }
}
LATER |= {name: {"file"} for name in ("positions", "steps", "scores")}


@dataclass(frozen=True)
class Results:
    """The tables of a study, each with at least its `COLUMNS`. A measure `m` has its 95 % interval (of one run, over
    items) in `m_low` and `m_high`, and its sample count in `m_n`.

    points       one row per sweep, point and seed: the run, and its `state` (finished, or why it cannot be reported)
    runs         one row per run: options, cost, the run that it `continues`, the digest of how it was `evaluated`, and
                 the version of its `validation`, in nats per token and bits per byte
    evaluations  one row per run, model (parent, dlm) and decoding setting; `correct`: all outcomes (see `unpack`);
                 `families`: those of the items (see `pack_families`)
    drift        distance of the weights from the parent's, per run, layer and kind of weight
    positions    means of a `quantity` by position in the block or in the sequence
    steps        one decoding, a row per position and step
    curves       metrics over training tokens
    scores       embedding scores per task

    The `file` of a measurement identifies it across sweeps and results.
    """

    points: pd.DataFrame
    runs: pd.DataFrame
    evaluations: pd.DataFrame
    drift: pd.DataFrame
    positions: pd.DataFrame
    steps: pd.DataFrame
    curves: pd.DataFrame
    scores: pd.DataFrame

    @classmethod
    def of_rows(cls, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Results:
        """Build from the rows of each table; missing tables and columns are empty."""
        tables = {name: pd.DataFrame(list(rows.get(name, ()))) for name in COLUMNS}
        return cls(**{name: complete(name, table) for name, table in tables.items()})

    def of(self, name: str, sweeps: str | Iterable[str]) -> pd.DataFrame:
        """The table `name` for the finished points of sweeps, each row preceded by the columns of its point and run.

        Measurements are those of the evaluation that ends every run and those made for the same sweep. A run that is a
        point of several of the sweeps appears once for each. `budget` is in tokens here: see `budget_tokens`.
        """
        names = (sweeps,) if isinstance(sweeps, str) else tuple(sweeps)
        if (name, names) not in self.joined:
            self.joined[name, names] = self.join(name, names)
        return self.joined[name, names].copy(deep=False)

    @cached_property
    def joined(self) -> dict[tuple[str, tuple[str, ...]], pd.DataFrame]:
        """What `of` was asked for: the exhibits and claims of a sweep read the same table many times."""
        return {}

    def join(self, name: str, sweeps: tuple[str, ...]) -> pd.DataFrame:
        """What `of` gives."""
        points = self.points[self.points["sweep"].isin(sweeps) & (self.points["state"] == FINISHED)]
        rows = points[["sweep", "point", "label", "run"]].merge(budget_tokens(self.runs), on="run")
        if name == "runs":
            return rows
        rows = rows.merge(getattr(self, name), on="run", suffixes=("_of_run", ""))
        if "for_sweep" in rows:
            rows = rows[(rows["for_sweep"] == "") | (rows["for_sweep"] == rows["sweep"])]
        return rows.reset_index(drop=True)

    def missing(self, sweeps: str | Iterable[str]) -> pd.DataFrame:
        """The points of sweeps that have no finished run."""
        names = [sweeps] if isinstance(sweeps, str) else list(sweeps)
        return self.points[self.points["sweep"].isin(names) & (self.points["state"] != FINISHED)]

    def save(self, path: Path) -> None:
        """Write all tables, column by column, to one JSON file, atomically."""
        content = {name: columnar(getattr(self, name)) for name in COLUMNS}
        lines = (f"{json.dumps(name)}: {json.dumps(columns, ensure_ascii=False)}" for name, columns in content.items())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote.

        Raises `ValueError` if the file is missing or not a results file, or if a table lacks a column.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tables = {name: pd.DataFrame({c: decode_texts(v) for c, v in content[name].items()}) for name in COLUMNS}
        except FileNotFoundError as error:
            raise ValueError(f"results {str(path)!r} do not exist: collect them with make ablation-report") from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"results {str(path)!r} are damaged ({error}): collect them again") from error
        for name, columns in COLUMNS.items():
            if lacking := set(columns) - set(tables[name].columns) - LATER.get(name, set()):
                raise ValueError(
                    f"results {str(path)!r}: table {name} lacks {', '.join(sorted(lacking))}: collect them again"
                )
        return cls(**{name: complete(name, table) for name, table in tables.items()})


def budget_tokens(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with their `budget` as training tokens, to two digits: the mean over all runs that were given it, for in
    another unit one budget is of other tokens in every seed and block size. NaN for budgets that are counted in tokens.
    """
    mean = runs["tokens"].astype(float).groupby(runs["budget"]).transform("mean")
    return runs.assign(budget=mean.map(lambda tokens: float(f"{tokens:.2g}")).astype(float))


def complete(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """The table with all columns of `COLUMNS`, these first. An empty one has dtype object, so it merges with any."""
    if table.empty:
        return pd.DataFrame(columns=list(COLUMNS[name]), dtype=object)
    return table.reindex(columns=[*COLUMNS[name], *(c for c in table.columns if c not in COLUMNS[name])])


def columnar(frame: pd.DataFrame) -> dict[str, Any]:
    """Column → JSON values, None if missing. Floats keep 7 significant digits: more is noise."""
    return {str(name): encode_texts([plain(v) for v in frame[name].tolist()]) for name in frame.columns}


def encode_texts(values: list) -> list | dict[str, list]:
    """Dictionary-encode a column of repeated texts: `{"texts": distinct texts, "at": index of each value}`. Other
    columns are returned unchanged."""
    texts = list(dict.fromkeys(v for v in values if isinstance(v, str)))
    if not 0 < 2 * len(texts) <= len(values) or not all(isinstance(v, str | None) for v in values):
        return values
    index = {text: i for i, text in enumerate(texts)}
    return {"texts": texts, "at": [index.get(value) for value in values]}


def decode_texts(column: Any) -> list:
    """The values of a column that `encode_texts` encoded."""
    if not isinstance(column, dict):
        return column
    return [None if i is None else column["texts"][i] for i in column["at"]]


def plain(value: Any) -> Any:
    """A value as a JSON type; NaN becomes None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.7g}")
    return value


def pack(correct: Iterable[bool]) -> str:
    """Encode outcomes as `count:hex`, one bit per item."""
    bits = np.fromiter((bool(c) for c in correct), dtype=bool)
    return f"{len(bits)}:{np.packbits(bits).tobytes().hex()}"


def unpack(packed: str) -> Bool[np.ndarray, " n"]:
    """Decode outcomes that `pack` encoded."""
    count, _, digits = packed.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8), count=int(count)).astype(bool)


def pack_families(families: Iterable[str], answer_tokens: Iterable[float]) -> str:
    """Encode the family of each item, with the mean tokens of its answers: `add 40 3.5, sort 40 6.1`, where the items
    of a family follow each other."""
    frame = pd.DataFrame({"family": list(families), "tokens": list(answer_tokens)})
    run = (frame["family"] != frame["family"].shift()).cumsum()
    groups = frame.groupby(run, sort=False)
    return ", ".join(f"{g['family'].iloc[0]} {len(g)} {g['tokens'].mean():.4g}" for _, g in groups)


def unpack_families(packed: str) -> dict[str, tuple[float, Int[np.ndarray, " n"]]]:
    """Family → the mean tokens of its answers and the indices of its items, from what `pack_families` encoded."""
    by_name: dict[str, list[tuple[float, Int[np.ndarray, " n"]]]] = {}
    start = 0
    for part in packed.split(", "):
        name, count, tokens = part.rsplit(" ", 2)
        by_name.setdefault(name, []).append((float(tokens), np.arange(start, start + int(count))))
        start += int(count)
    return {
        name: (
            float(np.average([t for t, _ in runs], weights=[len(i) for _, i in runs])),
            np.concatenate([i for _, i in runs]),
        )
        for name, runs in by_name.items()
    }


def columns(name: str, value: float, low: float, high: float, n: int) -> dict[str, float]:
    """The columns of a measure: value, interval and sample count."""
    return {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}
