"""What the report is made from: tidy tables of every run of the study, as one file that a reader can have without the
runs.

The report reads nothing else, so that it comes out the same from a results file as from the runs it was collected from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from dlm.runs.storage import write_atomically

FINISHED = "finished"
PARENT, DLM = "parent", "dlm"
MEASURED_FOR = ("for_sweep", "evaluation")  # the sweep and the name in it; both "" of what every run measures


IDS = ("run", *MEASURED_FOR, "file")  # and which of the run's measurements it is
INTERVALS = tuple(f"accuracy_{end}" for end in ("low", "high", "n"))
# The columns that every table has, whether anything was measured or not.
COLUMNS: dict[str, tuple[str, ...]] = {
    "points": ("sweep", "point", "label", "values", "seed", "run", "state", "error"),
    "runs": (
        *("run", "seed", "attention_name", "masking_name", "loss_name", "trainable_name", "block_size", "token_shift"),
        *("lr", "tokens", "parameters", "source", "parent", "train_seconds", "train_flops", "val_nelbo"),
        *("machine", "versions", "commit", "ended", "auxiliary_name", "continues", "evaluated"),
    ),
    "evaluations": (
        *(*IDS, "model", "setting", "decoder", "threshold", "target", "eval_block_size", "batch_size"),
        *("tpf", "nfe", "tokens_per_second", "accuracy", *INTERVALS, "code", "maths", "symbols", "cloze"),
        *("bits_per_byte", "correct", "tokens_per_row", "repetitive", "empty", "endless"),
    ),
    "drift": ("run", "layer", "kind", "mean_abs", "relative", "one_minus_cos"),
    "positions": (*IDS, "model", "quantity", "position", "value", "n"),
    "steps": (*IDS, "position", "step", "confidence", "committed", "token"),
    "curves": ("run", "tokens", "metric", "value"),
    "scores": (*IDS, "model", "task", "score"),
}
# Those of them that results may lack which were collected before there were such: nothing is known of them there.
LATER = {"runs": {"auxiliary_name", "continues", "evaluated"}}
LATER |= {"evaluations": {"tokens_per_row", "repetitive", "empty", "endless", "file"}}
LATER |= {name: {"file"} for name in ("positions", "steps", "scores")}


@dataclass(frozen=True)
class Results:
    """The tables of a study, with at least `COLUMNS`. A measure `m` has its interval as `m_low, m_high` (95 %, of one
    run, over items) and its sample count as `m_n`.

    `points` which run a sweep's point with a seed is, and its `state`: finished, or why there is nothing to report;
    `runs` the choices and the cost of a run, the run that it `continues`, if any, and how it was `evaluated`;
    `evaluations` one row per run, model (parent, dlm) and evaluation point,
    `correct` being the outcome of every item, packed (`unpack`); `drift` weights against the parent's per layer and
    kind; `positions` means over positions, of the block or of the sequence (`quantity` says of what); `steps` one
    decoding, token by token; `curves` metrics over training; `scores` of embeddings per task. The `file` of what
    a sweep asked for names the measurement, by which the same one is known again.
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
        """From the rows of each table; one that is not there is empty, a column that is not there has no values."""
        tables = {name: pd.DataFrame(list(rows.get(name, ()))) for name in COLUMNS}
        return cls(**{name: complete(name, table) for name, table in tables.items()})

    def of(self, name: str, sweeps: str | Iterable[str]) -> pd.DataFrame:
        """The table `name` for the finished points of sweeps: its rows with the point's and the run's columns before
        them, of measurements those that every run has and those that the sweep asks for. A run that is a point of two
        of the sweeps is there once for each."""
        wanted = [sweeps] if isinstance(sweeps, str) else list(sweeps)
        points = self.points[self.points["sweep"].isin(wanted) & (self.points["state"] == FINISHED)]
        found = points[["sweep", "point", "label", "run"]].merge(self.runs, on="run")
        if name == "runs":
            return found
        found = found.merge(getattr(self, name), on="run", suffixes=("_of_run", ""))
        if "for_sweep" in found:
            found = found[(found["for_sweep"] == "") | (found["for_sweep"] == found["sweep"])]
        return found.reset_index(drop=True)

    def missing(self, sweeps: str | Iterable[str]) -> pd.DataFrame:
        """The points of sweeps that have no finished run."""
        wanted = [sweeps] if isinstance(sweeps, str) else list(sweeps)
        return self.points[self.points["sweep"].isin(wanted) & (self.points["state"] != FINISHED)]

    def save(self, path: Path) -> None:
        """Write all tables as one JSON file, column by column, whole or not at all."""
        content = {name: columnar(getattr(self, name)) for name in COLUMNS}
        lines = (f"{json.dumps(name)}: {json.dumps(columns, ensure_ascii=False)}" for name, columns in content.items())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote.

        Raises `ValueError` where the file is not there, is no results file, or a table lacks a column.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tables = {name: pd.DataFrame({c: spelt_out(v) for c, v in content[name].items()}) for name in COLUMNS}
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


def complete(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """A table with all columns of `COLUMNS`, these first; without rows of no type, so that it merges with any."""
    if table.empty:
        return pd.DataFrame(columns=list(COLUMNS[name]), dtype=object)
    return table.reindex(columns=[*COLUMNS[name], *(c for c in table.columns if c not in COLUMNS[name])])


def columnar(frame: pd.DataFrame) -> dict[str, Any]:
    """Column → values, with None for what is not there. Floats keep 7 significant digits: more is noise."""
    return {str(name): abbreviated([plain(v) for v in frame[name].tolist()]) for name in frame.columns}


def abbreviated(values: list) -> Any:
    """Texts that come again and again as `{"texts": each once, "at": where each value stands among them}`."""
    texts = list(dict.fromkeys(v for v in values if isinstance(v, str)))
    if not 0 < 2 * len(texts) <= len(values) or not all(isinstance(v, str | None) for v in values):
        return values
    where = {text: i for i, text in enumerate(texts)}
    return {"texts": texts, "at": [where.get(value) for value in values]}


def spelt_out(column: Any) -> list:
    """The values of a column as `abbreviated` left it."""
    if not isinstance(column, dict):
        return column
    return [None if i is None else column["texts"][i] for i in column["at"]]


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.7g}")
    return value


def pack(correct: Iterable[bool]) -> str:
    """Outcomes as `count:hex`, one bit an item."""
    bits = np.fromiter((bool(c) for c in correct), dtype=bool)
    return f"{len(bits)}:{np.packbits(bits).tobytes().hex()}"


def unpack(packed: str) -> Bool[np.ndarray, " n"]:
    """The outcomes that `pack` packed."""
    count, _, digits = packed.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8), count=int(count)).astype(bool)


def columns(name: str, value: float, low: float, high: float, n: int) -> dict[str, float]:
    """A measure with its interval and its sample count, as columns of a row."""
    return {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}
