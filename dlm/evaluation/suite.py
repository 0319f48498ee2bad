"""Everything that is measured of a run, beside its parent."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from dlm.config.build import ar_denoiser, converted_denoiser, make
from dlm.data import prose, tasks
from dlm.decoding.base import Decoder
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold
from dlm.evaluation import cloze
from dlm.evaluation.calibration import nearest_thresholds
from dlm.evaluation.generation import accuracy, run_tasks, trace_summary
from dlm.evaluation.likelihood import likelihood, windows
from dlm.evaluation.throughput import interleaved
from dlm.model.denoiser import Denoiser
from dlm.model.parent import Parent, load_parent
from dlm.runs.run import Run
from dlm.runs.storage import read_json, write_atomically, write_json

ONE_TOKEN = "1 token/step"


def evaluate_run(run: Run, cfg: DictConfig) -> dict[str, Any]:
    """Every measurement of a run, as the record holds it; {} where `evaluation=none`."""
    if not cfg.tasks_per_family:
        return {}
    config = run.config
    converted = load_parent(str(run.trained_model()), dtype=config.model.get("dtype", "float32"), check=False)
    dlm = converted_denoiser(config, converted)
    parent = make(config.model, check=False)
    ar = ar_denoiser(parent)
    fingerprint = run.record["parent"]["fingerprint"]
    cache = run.folder.parent / ".parents" / f"{fingerprint}-{digest(cfg)}.json"
    cache.parent.mkdir(exist_ok=True)  # a run may be evaluated in another folder than it was trained in
    measured = cached(cache)
    if measured is None:
        measured = measure_model(ar, parent, cfg, {ONE_TOKEN: Fixed(1)})[0]
        write_json(cache, measured)
    chosen = calibrate(dlm, converted, cfg)
    found, items = measure_model(dlm, converted, cfg, {ONE_TOKEN: Fixed(1)} | chosen)
    write_atomically(run.folder / "items.csv", items.drop(columns=["step", "confidence"]).to_csv(index=False))
    first = items[items["setting"] == ONE_TOKEN]
    write_atomically(run.folder / "trace.json", json.dumps(trace_summary(first, dlm.pattern.block_size)))
    return {
        "settings": OmegaConf.to_container(cfg, resolve=True),
        "parent": measured,
        "dlm": found,
        "throughput": measure_throughput(ar, dlm, parent, chosen, cfg),
    }


def evaluate_again(run: Run, cfg: DictConfig) -> None:
    """Replace the evaluation of a finished run."""
    run.update(evaluation=evaluate_run(run, cfg))
    run.seal("items.csv", "trace.json")


def cached(path: Path) -> dict[str, Any] | None:
    """What was measured before; None where it was not, or where the file is damaged, which is said."""
    if not path.exists():
        return None
    try:
        return read_json(path)
    except ValueError as error:
        print(f"{path} is damaged ({error}): measuring the parent again", file=sys.stderr)
        return None


def is_evaluated(run: Run, cfg: DictConfig) -> bool:
    """Whether a run's record holds what `evaluate_run` would measure."""
    found = run.record.get("evaluation") or {}
    return not cfg.tasks_per_family or found.get("settings") == OmegaConf.to_container(cfg, resolve=True)


def digest(cfg: DictConfig) -> str:
    """What the parent's measurements depend on."""
    used = {k: cfg[k] for k in ("tasks_per_family", "max_new_tokens", "likelihood_rows", "length", "cloze_items")}
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:8]


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
    request = Request(prompts, cfg.max_new_tokens, parent.tokenizer.eos_token_id, batch_size=1)

    def decode(denoiser: Denoiser, decoder: Decoder):
        def once() -> int:
            return sum(len(g.tokens) for g in decoder.generate(denoiser, request))

        return once

    contestants = {"parent": decode(ar, Fixed(1)), ONE_TOKEN: decode(dlm, Fixed(1))}
    contestants |= {name: decode(dlm, decoder) for name, decoder in chosen.items()}
    return interleaved(contestants, cfg.throughput_repeats, dlm.model.device)
