"""Calibration: the confidence threshold that reaches a target of tokens per forward."""

from __future__ import annotations

from dlm.data import tasks
from dlm.data.pictures import Reader
from dlm.decoding.base import Decoder
from dlm.evaluation.generation import run_tasks
from dlm.model.denoiser import Denoiser


def tokens_per_forward(
    denoiser: Denoiser,
    reader: Reader,
    decoder: Decoder,
    thresholds: list[float],
    per_family: int,
    max_new_tokens: int,
    batch_size: int,
    families: tuple[str, ...] | None = None,
) -> dict[float, float]:
    """For each threshold of `decoder`, the tokens per forward on `per_family` validation items of each of the families
    (never on the test items)."""
    examples, reached = tasks.evaluation_set("val", per_family, families=families), {}
    for threshold in thresholds:
        results = run_tasks(denoiser, reader, examples, decoder.at(threshold), max_new_tokens, batch_size)
        reached[threshold] = results["tokens"].sum() / results["nfe"].sum()
    return reached


def nearest(reached: dict[float, float], target: float) -> float:
    """The threshold at which the tokens per forward `reached` come nearest to `target`."""
    return min(reached, key=lambda threshold: abs(reached[threshold] - target))
