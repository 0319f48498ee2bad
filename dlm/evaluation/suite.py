"""Everything that is measured of a run, beside its parent."""

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
from omegaconf import DictConfig, OmegaConf

from dlm.config.build import make
from dlm.config.finished import FinishedRun
from dlm.data import prose, tasks
from dlm.decoding.base import Decoder
from dlm.decoding.engine.request import Request
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


def is_requested(cfg: DictConfig | None) -> bool:
    """Whether a config asks for an evaluation. A scale sets values of it even with `evaluation=none`, which says
    `skip`, and with `evaluation=null`, where they are all that there is."""
    return bool(cfg) and not cfg.get("skip", False) and "batch_size" in cfg and bool(cfg.tasks_per_family)


def evaluate_run(run: Run, cfg: DictConfig, decoding: dict[str, Any] | None = None) -> dict[str, Any]:
    """Every measurement of a run, as the record holds it; {} where none is wanted. `decoding`, the resolved config of a
    decoder, is one more row of the tasks."""
    if not is_requested(cfg):
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
    if decoding:
        chosen[setting_name(decoding)] = make(decoding)
    found, items = measure_model(dlm, converted, cfg, {ONE_TOKEN: Fixed(1)} | chosen)
    write_atomically(run.folder / "items.csv", items.drop(columns=["step", "confidence"]).to_csv(index=False))
    if decoding:
        found["generation"][-1]["decoding"] = decoding
    first = items[items["setting"] == ONE_TOKEN]
    write_atomically(run.folder / "trace.json", json.dumps(trace_summary(first, dlm.pattern.block_size)))
    return {
        "settings": OmegaConf.to_container(cfg, resolve=True),
        "items": version,
        "parent": measured,
        "dlm": found,
        "throughput": measure_throughput(ar, dlm, parent, chosen, cfg),
    }


def evaluate_again(run: Run, cfg: DictConfig, decoding: dict[str, Any] | None = None) -> None:
    """Replace the evaluation of a finished run; only the row of `decoding` where the others have these settings."""
    if decoding and is_evaluated(run, cfg) and is_requested(cfg):
        run.update(evaluation=with_row(run, cfg, decoding))
    else:
        run.update(evaluation=evaluate_run(run, cfg, decoding))
    run.seal("items.csv", "trace.json")


def with_row(run: Run, cfg: DictConfig, decoding: dict[str, Any]) -> dict[str, Any]:
    """A run's evaluation with the row of one more decoder, or with that row anew."""
    finished = FinishedRun(run)
    dlm, converted = finished.dlm, finished.converted
    name, evaluation = setting_name(decoding), run.record["evaluation"]
    decoder = make(decoding)
    rows, items = decode_tasks(dlm, converted, cfg, {name: decoder})
    others = [row for row in evaluation["dlm"]["generation"] if row["name"] != name]
    evaluation["dlm"]["generation"] = others + [rows[0] | {"decoding": decoding}]
    evaluation["throughput"] |= interleaved(
        {name: timed(dlm, converted, decoder, cfg)}, cfg.throughput_repeats, dlm.model.device
    )
    path = run.folder / "items.csv"
    before = pd.read_csv(path, dtype=str, keep_default_na=False)
    added = items.drop(columns=["step", "confidence"])
    write_atomically(path, pd.concat([before[before["setting"] != name], added]).to_csv(index=False))
    return evaluation


def setting_name(decoding: dict[str, Any]) -> str:
    """How the row of a decoder is called: its option and the values that it has."""
    option = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", decoding["_target_"].rpartition(".")[2]).lower()
    return " ".join([option, *(f"{key}={value}" for key, value in decoding.items() if key != "_target_")])


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


def is_evaluated(run: Run, cfg: DictConfig, decoding: dict[str, Any] | None = None) -> bool:
    """Whether a run's record holds what `evaluate_run` would measure. Records of earlier versions do not say of which
    items they are, and count."""
    if not is_requested(cfg):
        return True
    found = run.record.get("evaluation") or {}
    if found.get("settings") != OmegaConf.to_container(cfg, resolve=True):
        return False
    if "items" in found and found["items"] != items_version():
        return False
    return decoding is None or any(row.get("decoding") == decoding for row in found["dlm"]["generation"])


@torch.no_grad()
def require_decodable(denoiser: Denoiser, decoder: Decoder, token: int) -> None:
    """Decode one block after a single token, so that a decoder that cannot read this model says so (`ValueError`)
    before the model is trained."""
    training = denoiser.training
    denoiser.eval()
    try:
        with torch.random.fork_rng():
            decoder.generate(denoiser, Request([[token]], 1))
    finally:
        denoiser.train(training)


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
    generation, items = decode_tasks(denoiser, parent, cfg, decoders)
    found = {
        "likelihood": dataclasses.asdict(bound),
        "cloze": sum(a == q.answer for a, q in zip(answers, questions, strict=True)) / len(questions),
        "cloze_items": len(questions),
        "generation": generation,
    }
    return found, items


def decode_tasks(
    denoiser: Denoiser, parent: Parent, cfg: DictConfig, decoders: dict[str, Decoder]
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """The tasks under each decoder, the same items for all: a row for each, and the items of all of them."""
    examples = tasks.evaluation_set("test", cfg.tasks_per_family)
    rows, items = [], []
    for name, decoder in decoders.items():
        results = run_tasks(denoiser, parent.tokenizer, examples, decoder, cfg.max_new_tokens, cfg.batch_size)
        rows.append({"name": name, "threshold": getattr(decoder, "threshold", None)} | accuracy(results))
        items.append(results.assign(setting=name))
    return rows, pd.concat(items, ignore_index=True)


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
    contestants = {"parent": timed(ar, parent, Fixed(1), cfg), ONE_TOKEN: timed(dlm, parent, Fixed(1), cfg)}
    contestants |= {name: timed(dlm, parent, decoder, cfg) for name, decoder in chosen.items()}
    return interleaved(contestants, cfg.throughput_repeats, dlm.model.device)


def timed(denoiser: Denoiser, parent: Parent, decoder: Decoder, cfg: DictConfig) -> Callable[[], int]:
    """What is timed of a decoder: it answers prompts at batch 1, and returns how many tokens it made."""
    examples = tasks.evaluation_set("test", max(1, cfg.throughput_prompts // len(tasks.FAMILIES)))
    prompts = parent.tokenizer([e.prompt for e in examples])["input_ids"]
    request = Request(prompts, cfg.max_new_tokens, eos_ids(denoiser.model, parent.tokenizer), batch_size=1)

    def once() -> int:
        return sum(len(g.tokens) for g in decoder.generate(denoiser, request))

    return once
