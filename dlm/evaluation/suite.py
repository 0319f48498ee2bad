"""Evaluates a run and its parent: likelihood, multiple choice, the tasks under several decoders, and throughput."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dlm.config.build import make
from dlm.config.finished import FinishedRun
from dlm.config.values import EvaluationSettings
from dlm.data import prose, tasks
from dlm.decoding.base import Decoder
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold
from dlm.evaluation import cloze
from dlm.evaluation.calibration import nearest, tokens_per_forward
from dlm.evaluation.generation import accuracy, on_grid, prompts_of, run_tasks, trace_summary
from dlm.evaluation.items import added_version, items_version
from dlm.evaluation.likelihood import likelihood, windows
from dlm.evaluation.longest import require_evaluable
from dlm.evaluation.throughput import interleaved
from dlm.model.denoiser import Denoiser
from dlm.model.device import AUTO, device_name
from dlm.model.eos import eos_ids
from dlm.model.parent import Parent
from dlm.runs.digest import FILE_DIGITS, digest
from dlm.runs.run import Run
from dlm.runs.storage import read_json, write_atomically, write_json

ONE_TOKEN = "1 token/step"


def evaluate_run(
    run: Run, settings: EvaluationSettings | None, decoding: dict[str, Any] | None = None, device: str = AUTO
) -> dict[str, Any]:
    """Evaluate a run and its parent on a device. Returns the evaluation for the record, {} without settings.
    `decoding`, the resolved config of a decoder, adds a row to the tasks."""
    if settings is None:
        return {}
    finished, families = FinishedRun(run, device), settings.families
    dlm, converted = finished.dlm, finished.converted
    require_evaluable(
        dlm, converted.reader, settings.length, settings.tasks_per_family, settings.max_new_tokens, families
    )
    version = items_version() + added_version(families)
    parent_metrics = metrics_of_parent(finished, settings, version)
    decoders = calibrate(dlm, converted, settings)
    if decoding:
        decoders[setting_name(decoding)] = make(decoding)
    dlm_metrics, items = measure_model(dlm, converted, settings, {ONE_TOKEN: Fixed(1)} | decoders)
    write_atomically(run.folder / "items.csv", items.drop(columns=["step", "confidence"]).to_csv(index=False))
    if decoding:
        dlm_metrics["generation"][-1]["decoding"] = decoding
    one_token = items[items["setting"] == ONE_TOKEN]
    write_atomically(
        run.folder / "trace.json", json.dumps(trace_summary(on_grid(one_token, dlm.pattern), dlm.pattern.block_size))
    )
    return {
        "settings": settings.recorded,
        "items": version,
        "parent": parent_metrics,
        "dlm": dlm_metrics,
        "throughput": measure_throughput(finished.ar, dlm, finished.parent, decoders, settings),
        "device": device_name(finished.device),
    }


def metrics_of_parent(finished: FinishedRun, settings: EvaluationSettings, version: str) -> dict[str, Any]:
    """The metrics of a run's parent on the items of a `version`, measured once for all runs of a folder."""
    ar, parent = finished.ar, finished.parent
    fingerprint = finished.run.record["parent"]["fingerprint"]
    key = digest(parent_settings(settings, eos_ids(parent.model, parent.tokenizer)), FILE_DIGITS)
    cache = finished.run.folder.parent / ".parents" / f"{fingerprint}-{key}.json"
    cache.parent.mkdir(exist_ok=True)  # the run may have been trained in another folder of runs
    metrics = cached_metrics(cache, version)
    if metrics is None:
        metrics = measure_model(ar, parent, settings, {ONE_TOKEN: Fixed(1)})[0]
        write_json(cache, metrics | {"items": version})
    return metrics


def evaluate_again(
    run: Run, settings: EvaluationSettings | None, decoding: dict[str, Any] | None = None, device: str = AUTO
) -> None:
    """Replace the evaluation of a finished run, or only the row of `decoding` if the other rows have these settings."""
    if decoding and settings and is_evaluated(run, settings):
        run.update(evaluation=with_row(run, settings, decoding, device))
    else:
        run.update(evaluation=evaluate_run(run, settings, decoding, device))
    run.seal("items.csv", "trace.json")


def with_row(run: Run, settings: EvaluationSettings, decoding: dict[str, Any], device: str) -> dict[str, Any]:
    """A run's evaluation with the row of a decoder, measured on a device, added or replaced."""
    finished = FinishedRun(run, device)
    dlm, converted = finished.dlm, finished.converted
    name, evaluation = setting_name(decoding), run.record["evaluation"]
    decoder = make(decoding)
    rows, items = decode_tasks(dlm, converted, settings, {name: decoder})
    others = [row for row in evaluation["dlm"]["generation"] if row["name"] != name]
    evaluation["dlm"]["generation"] = others + [
        rows[0] | {"decoding": decoding, "device": device_name(finished.device)}
    ]
    evaluation["throughput"] |= interleaved(
        {name: decoding_timer(dlm, converted, decoder, settings)}, settings.throughput_repeats, dlm.model.device
    )
    path = run.folder / "items.csv"
    old_items = pd.read_csv(path, dtype=str, keep_default_na=False)
    new_items = items.drop(columns=["step", "confidence"])
    write_atomically(path, pd.concat([old_items[old_items["setting"] != name], new_items]).to_csv(index=False))
    return evaluation


def setting_name(decoding: dict[str, Any]) -> str:
    """The name of a decoder's row: its option and values, such as `threshold threshold=0.9`."""
    option = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", decoding["_target_"].rpartition(".")[2]).lower()
    return " ".join([option, *(f"{key}={value}" for key, value in decoding.items() if key != "_target_")])


def cached_metrics(path: Path, version: str) -> dict[str, Any] | None:
    """The cached metrics of the parent. Returns None if they are not cached, are for another version of the items, or
    if the cache is corrupt (a warning is printed)."""
    if not path.exists():
        return None
    try:
        metrics = read_json(path)
    except ValueError as error:
        print(f"{path} is damaged ({error}): measuring the parent again", file=sys.stderr)
        return None
    return metrics if metrics.pop("items", None) == version else None


def is_evaluated(run: Run, settings: EvaluationSettings | None, decoding: dict[str, Any] | None = None) -> bool:
    """Whether a run's record already holds the result of `evaluate_run`. A record without a version of the items is
    accepted."""
    if settings is None:
        return True
    evaluation = run.record.get("evaluation") or {}
    if evaluation.get("settings") != settings.recorded:
        return False
    if "items" in evaluation and evaluation["items"] != items_version() + added_version(settings.families):
        return False
    return decoding is None or any(row.get("decoding") == decoding for row in evaluation["dlm"]["generation"])


@torch.no_grad()
def require_decodable(denoiser: Denoiser, decoder: Decoder) -> None:
    """Decode one block after a single token, so that a decoder which cannot decode this model raises its `ValueError`
    before training."""
    training, token = denoiser.training, int(denoiser.mask_id == 0)  # any token but the mask
    denoiser.eval()
    try:
        with torch.random.fork_rng():
            decoder.generate(denoiser, Request([[token]], 1))
    finally:
        denoiser.train(training)


def parent_settings(settings: EvaluationSettings, ends: list[int]) -> dict[str, Any]:
    """The settings that the parent's metrics depend on, besides its weights. `ends` are its end-of-sequence tokens."""
    names = ("tasks_per_family", "max_new_tokens", "likelihood_rows", "length", "cloze_items", "families")
    values = {name: value for name, value in settings.recorded.items() if name in names}
    return values | ({"ends": ends} if len(ends) > 1 else {})  # a single one is the tokenizer's


def measure_model(
    denoiser: Denoiser, parent: Parent, settings: EvaluationSettings, decoders: dict[str, Decoder]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Measure likelihood, multiple choice, and the tasks under each decoder, with the same items for all. Returns the
    metrics and a table of the decoded items."""
    texts = list(prose.chapters("test"))
    rows, num_bytes = windows(texts, parent.tokenizer, settings.length, settings.likelihood_rows)
    bound = likelihood(denoiser, rows, num_bytes, settings.likelihood_samples, settings.batch_size)
    questions = cloze.items(texts, parent.tokenizer, settings.cloze_items)
    answers = cloze.answers(denoiser, questions, settings.batch_size)
    generation, items = decode_tasks(denoiser, parent, settings, decoders)
    metrics = {
        "likelihood": dataclasses.asdict(bound),
        "cloze": sum(a == q.answer for a, q in zip(answers, questions, strict=True)) / len(questions),
        "cloze_items": len(questions),
        "generation": generation,
    }
    return metrics, items


def decode_tasks(
    denoiser: Denoiser, parent: Parent, settings: EvaluationSettings, decoders: dict[str, Decoder]
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Decode the tasks with each decoder, the same items for all. Returns a row of metrics per decoder, and a table of
    all decoded items."""
    examples = tasks.evaluation_set("test", settings.tasks_per_family, families=settings.families)
    rows, items = [], []
    for name, decoder in decoders.items():
        results = run_tasks(denoiser, parent.reader, examples, decoder, settings.max_new_tokens, settings.batch_size)
        rows.append({"name": name, "threshold": getattr(decoder, "threshold", None)} | accuracy(results))
        items.append(results.assign(setting=name))
    return rows, pd.concat(items, ignore_index=True)


def calibrate(denoiser: Denoiser, parent: Parent, settings: EvaluationSettings) -> dict[str, Decoder]:
    """For each target of tokens per forward, the decoder with the nearest threshold, named `TPF≈2`."""
    if not settings.tpf_targets:
        return {}
    reached = tokens_per_forward(
        denoiser,
        parent.reader,
        Threshold(1.0),
        settings.thresholds,
        settings.calibration_per_family,
        settings.max_new_tokens,
        settings.batch_size,
        settings.families,
    )
    return {f"TPF≈{target:g}": Threshold(nearest(reached, target)) for target in settings.tpf_targets}


def measure_throughput(
    ar: Denoiser, dlm: Denoiser, parent: Parent, decoders: dict[str, Decoder], settings: EvaluationSettings
) -> dict[str, float]:
    """Tokens per second at batch size 1 of the parent and of the dLM under each decoder, measured in turns."""
    timers = {
        "parent": decoding_timer(ar, parent, Fixed(1), settings),
        ONE_TOKEN: decoding_timer(dlm, parent, Fixed(1), settings),
    }
    timers |= {name: decoding_timer(dlm, parent, decoder, settings) for name, decoder in decoders.items()}
    return interleaved(timers, settings.throughput_repeats, dlm.model.device)


def decoding_timer(
    denoiser: Denoiser, parent: Parent, decoder: Decoder, settings: EvaluationSettings
) -> Callable[[], int]:
    """The function to time: it answers prompts at batch size 1 and returns the number of new tokens."""
    families = settings.families
    per_family = max(1, settings.throughput_prompts // len(families or tasks.FAMILIES))
    examples = tasks.evaluation_set("test", per_family, families=families)[: settings.throughput_prompts]
    prompts, images = zip(*prompts_of(parent.reader, examples), strict=True)
    ends = eos_ids(denoiser.model, parent.tokenizer)
    request = Request(list(prompts), settings.max_new_tokens, ends, batch_size=1, images=images)

    def decode() -> int:
        return sum(len(g.tokens) for g in decoder.generate(denoiser, request))

    return decode
