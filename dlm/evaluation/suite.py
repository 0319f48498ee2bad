"""Everything that is measured of a run, beside its parent."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from dlm.config.finished import FinishedRun
from dlm.data import prose, tasks
from dlm.decoding.base import Decoder
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold
from dlm.evaluation import cloze
from dlm.evaluation.calibration import nearest_thresholds
from dlm.evaluation.generation import accuracy, run_tasks, trace_summary
from dlm.evaluation.items import items_version
from dlm.evaluation.likelihood import likelihood, windows
from dlm.evaluation.longest import require_evaluable
from dlm.evaluation.throughput import interleaved
from dlm.model.denoiser import Denoiser
from dlm.model.eos import eos_ids
from dlm.model.parent import Parent
from dlm.runs.digest import FILE_DIGITS, digest
from dlm.runs.run import Run
from dlm.runs.storage import read_json, write_atomically, write_json

ONE_TOKEN = "1 token/step"


def evaluate_run(run: Run, cfg: DictConfig) -> dict[str, Any]:
    """Every measurement of a run, as the record holds it; {} where `evaluation=none`."""
    if not cfg.tasks_per_family:
        return {}
    finished = FinishedRun(run)
    dlm, converted = finished.dlm, finished.converted
    require_evaluable(dlm, converted.tokenizer, cfg.length, cfg.tasks_per_family, cfg.max_new_tokens)
    ar, parent = finished.ar, finished.parent
    fingerprint = run.record["parent"]["fingerprint"]
    key = digest(parent_settings(cfg, eos_ids(parent.model, parent.tokenizer)), FILE_DIGITS)
    cache = run.folder.parent / ".parents" / f"{fingerprint}-{key}.json"
    cache.parent.mkdir(exist_ok=True)  # a run may be evaluated in another folder than it was trained in
    version = items_version()
    measured = cached(cache, version)
    if measured is None:
        measured = measure_model(ar, parent, cfg, {ONE_TOKEN: Fixed(1)})[0]
        write_json(cache, measured | {"items": version})
    chosen = calibrate(dlm, converted, cfg)
    found, items = measure_model(dlm, converted, cfg, {ONE_TOKEN: Fixed(1)} | chosen)
    write_atomically(run.folder / "items.csv", items.drop(columns=["step", "confidence"]).to_csv(index=False))
    first = items[items["setting"] == ONE_TOKEN]
    write_atomically(run.folder / "trace.json", json.dumps(trace_summary(first, dlm.pattern.block_size)))
    return {
        "settings": OmegaConf.to_container(cfg, resolve=True),
        "items": version,
        "parent": measured,
        "dlm": found,
        "throughput": measure_throughput(ar, dlm, parent, chosen, cfg),
    }


def evaluate_again(run: Run, cfg: DictConfig) -> None:
    """Replace the evaluation of a finished run."""
    run.update(evaluation=evaluate_run(run, cfg))
    run.seal("items.csv", "trace.json")


def cached(path: Path, version: str) -> dict[str, Any] | None:
    """What was measured before. None where it was not, where it was of items of another version, or where the file is
    damaged, which is said."""
    if not path.exists():
        return None
    try:
        measured = read_json(path)
    except ValueError as error:
        print(f"{path} is damaged ({error}): measuring the parent again", file=sys.stderr)
        return None
    return measured if measured.pop("items", None) == version else None


def is_evaluated(run: Run, cfg: DictConfig) -> bool:
    """Whether a run's record holds what `evaluate_run` would measure. Records of earlier versions do not say of which
    items they are, and count."""
    if not cfg.tasks_per_family:
        return True
    found = run.record.get("evaluation") or {}
    if found.get("settings") != OmegaConf.to_container(cfg, resolve=True):
        return False
    return "items" not in found or found["items"] == items_version()


def parent_settings(cfg: DictConfig, ends: list[int]) -> dict[str, Any]:
    """What the parent's measurements depend on beside its weights; `ends` are the tokens that end its answers."""
    used = {k: cfg[k] for k in ("tasks_per_family", "max_new_tokens", "likelihood_rows", "length", "cloze_items")}
    return used | ({"ends": ends} if len(ends) > 1 else {})  # a single one is the tokenizer's, and needs no key


def measure_model(
    denoiser: Denoiser, parent: Parent, cfg: DictConfig, decoders: dict[str, Decoder]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Likelihood, multiple choice, and the tasks under each decoder (the same items for all)."""
    texts = list(prose.chapters("test"))
    rows, num_bytes = windows(texts, parent.tokenizer, cfg.length, cfg.likelihood_rows)
    bound = likelihood(denoiser, rows, num_bytes, cfg.likelihood_samples, cfg.batch_size)
    questions = cloze.items(texts, parent.tokenizer, cfg.cloze_items)
    answers = cloze.answers(denoiser, questions, parent.tokenizer.eos_token_id, cfg.batch_size)
    examples = tasks.evaluation_set("test", cfg.tasks_per_family)
    generation, items = [], []
    for name, decoder in decoders.items():
        results = run_tasks(denoiser, parent.tokenizer, examples, decoder, cfg.max_new_tokens, cfg.batch_size)
        generation.append({"name": name, "threshold": getattr(decoder, "threshold", None)} | accuracy(results))
        items.append(results.assign(setting=name))
    found = {
        "likelihood": dataclasses.asdict(bound),
        "cloze": sum(a == q.answer for a, q in zip(answers, questions, strict=True)) / len(questions),
        "cloze_items": len(questions),
        "generation": generation,
    }
    return found, pd.concat(items, ignore_index=True)


def calibrate(denoiser: Denoiser, parent: Parent, cfg: DictConfig) -> dict[str, Decoder]:
    """`TPF≈2`, …: for each target the threshold that comes nearest."""
    found = nearest_thresholds(
        denoiser,
        parent.tokenizer,
        Threshold(1.0),
        list(cfg.thresholds),
        list(cfg.tpf_targets),
        cfg.calibration_per_family,
        cfg.max_new_tokens,
        cfg.batch_size,
    )
    return {f"TPF≈{target:g}": Threshold(threshold) for target, threshold in found.items()}


def measure_throughput(
    ar: Denoiser, dlm: Denoiser, parent: Parent, chosen: dict[str, Decoder], cfg: DictConfig
) -> dict[str, float]:
    """Tokens/s at batch 1 of the parent and of the dLM at each setting, measured in turns."""
    examples = tasks.evaluation_set("test", max(1, cfg.throughput_prompts // len(tasks.FAMILIES)))
    prompts = parent.tokenizer([e.prompt for e in examples])["input_ids"]

    def decode(denoiser: Denoiser, decoder: Decoder):
        ends = eos_ids(denoiser.model, parent.tokenizer)

        def once() -> int:
            made = decoder.generate(denoiser, prompts, cfg.max_new_tokens, ends, batch_size=1)
            return sum(len(g.tokens) for g in made)

        return once

    contestants = {"parent": decode(ar, Fixed(1)), ONE_TOKEN: decode(dlm, Fixed(1))}
    contestants |= {name: decode(dlm, decoder) for name, decoder in chosen.items()}
    return interleaved(contestants, cfg.throughput_repeats, dlm.model.device)
