"""Measurements of `dlm.measure` as rows of the results' tables: one function per kind of measurement."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.plan.sweep import Evaluation
from analysis.tables.domains import domains, proportion
from analysis.tables.results import DLM, PARENT, columns, pack, pack_families
from dlm.evaluation.generation import DEGENERATE

Rows = dict[str, list[dict[str, Any]]]


def tables_of(evaluation: Evaluation, measurement: dict[str, Any]) -> Rows:
    """Table name → rows of a stored measurement, without the columns of `IDS`."""
    kind = evaluation.settings["_target_"].split(".")[-2]
    return READERS[kind](evaluation, measurement["result"])


def decode(evaluation: Evaluation, result: dict[str, Any]) -> Rows:
    """Accuracy, cost and degenerate outputs of the tasks with one decoder."""
    settings = evaluation.settings
    decoder = settings["decoder"]["_target_"].split(".")[-1]
    grid_values = [f"{key.rpartition('.')[2].replace('_', ' ')} {value}" for key, value in evaluation.values.items()]
    row = {
        "model": PARENT if settings["model"] == "ar" else DLM,
        "setting": ", ".join(grid_values) or evaluation.name.replace("_", " "),
        "decoder": decoder,
        "threshold": result["threshold"],
        "eval_block_size": result["block_size"],
        "batch_size": settings.get("timed_batch_size"),
        "target": settings.get("tpf"),
        **{key: result[key] for key in ("tpf", "nfe", "tokens_per_second")},
        **outputs(result),
        **columns("accuracy", *(result[key] for key in ("accuracy", "low", "high", "n"))),
        **domains(result["families"]),
        "correct": pack(result["items"]["correct"]),
        "families": families(pd.DataFrame(result["items"])),
    }
    return {"evaluations": [row]}


def families(items: pd.DataFrame) -> str | None:
    """The packed families of decoded items; None where these or the lengths of the answers were not recorded."""
    if items.empty or not {"family", "answer_tokens"} <= set(items):
        return None
    return pack_families(items["family"], items["answer_tokens"])


def outputs(result: dict[str, Any]) -> dict[str, float]:
    """Tokens per row, the share of right steps and the shares of degenerate outputs, as far as measured."""
    shares = (proportion(name, result[name], result["n"]) for name in DEGENERATE if name in result)
    means = {name: result[name] for name in ("tokens_per_row", "right_steps") if name in result}
    return means | {key: value for share in shares for key, value in share.items()}


def trace(evaluation: Evaluation, result: dict[str, Any]) -> Rows:
    """The mean step at which each position of a block is committed, in all blocks (`step`) and in full ones
    (`full_step`), the rank correlation of step and position in the latter (`order`, as of position 0), and one decoding
    step by step."""
    order = result.get("order", {"positions": [], "correlation": None})
    positions = [
        {"model": DLM, "quantity": quantity, "position": p["position"], "value": p["step"], "n": p["n"]}
        for quantity, places in (("step", result["positions"]), ("full_step", order["positions"]))
        for p in places
    ]
    if order["correlation"] is not None:
        measured = {"value": order["correlation"], "n": order["blocks"]}
        positions.append({"model": DLM, "quantity": "order", "position": 0} | measured)
    example = result["example"]
    texts = dict(enumerate(example["tokens"], example["prompt_tokens"]))
    return {"positions": positions, "steps": [c | {"token": texts[c["position"]]} for c in example["cells"]]}


def position_loss(evaluation: Evaluation, result: dict[str, Any]) -> Rows:
    """`loss`: that of a masked token by position in the block; `sequence_loss`: the NELBO by position in the sequence,
    both in nats."""
    rows = []
    for model, name in ((DLM, "dlm"), (PARENT, "ar")):
        for quantity, where, measure in (("loss", "block", "nll"), ("sequence_loss", "sequence", "nelbo")):
            table = result[name][where]
            values = zip(table["position"], table[measure], table["n"], strict=True)
            rows += [{"model": model, "quantity": quantity, "position": p, "value": v, "n": n} for p, v, n in values]
    return {"positions": rows}


def masked(evaluation: Evaluation, result: dict[str, Any]) -> Rows:
    """The probability with which the masking scheme masks each position of a block."""
    n = evaluation.settings["draws"]
    rows = [
        {"model": DLM, "quantity": "masked", "position": p, "value": value, "n": n}
        for p, value in enumerate(result["probability"])
    ]
    return {"positions": rows}


def embedding(evaluation: Evaluation, result: dict[str, Any]) -> Rows:
    """The score of mean-pooled embeddings by task."""
    rows = [
        {"model": model, "task": f"{task} ({score['metric']})"}
        | columns("score", *(score[key] for key in ("score", "low", "high", "n")))
        for model, name in ((DLM, "dlm"), (PARENT, "ar"))
        for task, score in result[name].items()
    ]
    return {"scores": rows}


READERS = {f.__name__: f for f in (decode, trace, position_loss, masked, embedding)}
