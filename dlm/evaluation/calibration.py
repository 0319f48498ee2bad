"""Calibration: the confidence threshold that reaches a target of tokens per forward."""

from __future__ import annotations

from dlm.data import tasks
from dlm.data.pictures import Reader
from dlm.decoding.base import Decoder
from dlm.evaluation.generation import run_tasks
from dlm.model.denoiser import Denoiser


def nearest_thresholds(
    denoiser: Denoiser,
    reader: Reader,
    decoder: Decoder,
    thresholds: list[float],
    targets: list[float],
    per_family: int,
    max_new_tokens: int,
    batch_size: int,
    families: tuple[str, ...] | None = None,
) -> dict[float, float]:
    """For each target, in tokens per forward, the threshold of `decoder` that comes nearest to it on `per_family`
    validation items of each of the families (never on the test items)."""
    examples, reached = tasks.evaluation_set("val", per_family, families=families), {}
    for threshold in thresholds if targets else []:
        results = run_tasks(denoiser, reader, examples, decoder.at(threshold), max_new_tokens, batch_size)
        reached[threshold] = results["tokens"].sum() / results["nfe"].sum()
    return {target: min(reached, key=lambda tau: abs(reached[tau] - target)) for target in targets}
