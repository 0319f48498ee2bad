"""Evaluate a finished run beside its parent: `python -m dlm.evaluate run=ID [evaluation.thresholds=[0.9,0.5] ...]`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from dlm.build import ar_denoiser, converted_denoiser, make
from dlm.console import command
from dlm.data import prose, tasks
from dlm.decoding.base import Decoder
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold
from dlm.denoiser import Denoiser
from dlm.eos import eos_ids
from dlm.evaluation import cloze
from dlm.evaluation.calibration import nearest_thresholds
from dlm.evaluation.generation import accuracy, run_tasks, trace_summary
from dlm.evaluation.likelihood import likelihood, windows
from dlm.evaluation.longest import require_evaluable
from dlm.evaluation.throughput import interleaved
from dlm.lease import lease
from dlm.parent import Parent, load_parent
from dlm.runs import Run
from dlm.storage import read_json, write_atomically, write_json

ONE_TOKEN = "1 token/step"


def evaluate_run(run: Run, cfg: DictConfig) -> dict[str, Any]:
    """Every measurement of a run, as the record holds it; {} where `evaluation=none`."""
    if not cfg.tasks_per_family:
        return {}
    config = run.config
    converted = load_parent(str(run.trained_model()), dtype=config.model.get("dtype", "float32"), check=False)
    dlm = converted_denoiser(config, converted)
    require_evaluable(dlm, converted.tokenizer, cfg.length, cfg.tasks_per_family, cfg.max_new_tokens)
    parent = make(config.model, check=False)
    ar = ar_denoiser(parent)
    fingerprint = run.record["parent"]["fingerprint"]
    ends = eos_ids(parent.model, parent.tokenizer)
    cache = run.folder.parent / ".parents" / f"{fingerprint}-{digest(cfg, ends)}.json"
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


def digest(cfg: DictConfig, ends: list[int]) -> str:
    """What the parent's measurements depend on beside its weights; `ends` are the tokens that end its answers."""
    used = {k: cfg[k] for k in ("tasks_per_family", "max_new_tokens", "likelihood_rows", "length", "cloze_items")}
    if len(ends) > 1:  # a single one is the tokenizer's: what was measured then stays
        used["ends"] = ends
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

    def decode(denoiser: Denoiser, decoder: Decoder):
        ends = eos_ids(denoiser.model, parent.tokenizer)

        def once() -> int:
            made = decoder.generate(denoiser, prompts, cfg.max_new_tokens, ends, batch_size=1)
            return sum(len(g.tokens) for g in made)

        return once

    contestants = {"parent": decode(ar, Fixed(1)), ONE_TOKEN: decode(dlm, Fixed(1))}
    contestants |= {name: decode(dlm, decoder) for name, decoder in chosen.items()}
    return interleaved(contestants, cfg.throughput_repeats, dlm.model.device)


def headline(record: dict[str, Any]) -> dict[str, float]:
    """The few numbers of a record that a summary shows."""
    found = {"val NELBO": record.get("train", {}).get("val/nelbo")}
    for g in (record.get("evaluation") or {}).get("dlm", {}).get("generation", []):
        found |= {f"accuracy, {g['name']}": g["accuracy"], f"TPF, {g['name']}": g["tpf"]}
    found["drift ffn"] = record.get("drift", {}).get("ffn/relative")
    return {name: value for name, value in found.items() if value is not None}


def report(run: Run) -> list[Table]:
    """What a run found, as tables for the terminal."""
    record = run.record
    evaluation = record["evaluation"]
    if not evaluation:
        return []
    parent, dlm, speed = evaluation["parent"], evaluation["dlm"], evaluation["throughput"]
    table = Table(title=f"run {run.id}: {record['parent']['source']} → dLM, {record['tokens']:,} tokens")
    table.add_column("")
    table.add_column("exact match [95 %]", no_wrap=True)
    for column in ("tokens/\nforward", "forwards/\nanswer", "tokens/s\n(batch 1)"):
        table.add_column(column, justify="right")
    for model, found in (("parent", parent), ("dLM", dlm)):
        for g in found["generation"]:
            rate = speed["parent" if model == "parent" else g["name"]]
            interval = f"{g['accuracy']:.1%} [{g['low']:.1%}, {g['high']:.1%}]"
            table.add_row(label(model, g), interval, f"{g['tpf']:.2f}", f"{g['nfe']:.1f}", f"{rate:.0f}")
    table.caption = f"{dlm['generation'][0]['n']} test items; every forward is counted"
    text = Table(title="held-out prose")
    for column in ("", "nats/token", "bits/byte", f"multiple choice (n={dlm['cloze_items']})"):
        text.add_column(column)
    for name, found in (("parent, NLL", parent), ("dLM, NELBO", dlm)):
        nats = found["likelihood"]
        text.add_row(
            name,
            f"{nats['nats']:.3f} ± {nats['standard_error']:.3f}",
            f"{nats['bits_per_byte']:.3f}",
            f"{found['cloze']:.1%}",
        )
    return [table, family_table(parent, dlm), text, drift_table(record["drift"])]


def label(model: str, setting: dict[str, Any]) -> str:
    """How a decoding setting is called in a table: `dLM, TPF≈2 (τ=0.8)`, τ being the threshold."""
    if model == "parent":
        return model
    threshold = setting["threshold"]
    return f"{model}, {setting['name']}" + (f" (τ={threshold})" if threshold is not None else "")


def family_table(parent: dict, dlm: dict) -> Table:
    """Exact match per task family."""
    columns = [("parent", parent["generation"][0])] + [(label("dLM", g), g) for g in dlm["generation"]]
    table = Table(title="exact match per family")
    table.add_column("")
    for name, _ in columns:
        table.add_column(name)
    for family in dlm["generation"][0]["families"]:
        table.add_row(family, *(f"{g['families'][family]['accuracy']:.0%}" for _, g in columns))
    return table


def drift_table(drift: dict[str, float]) -> Table:
    """Weight change against the parent."""
    table = Table(title="weight drift")
    for column in ("", "mean |ΔW|", "‖ΔW‖ / ‖W‖", "1 − cos"):
        table.add_column(column)
    for kind in sorted({name.split("/")[0] for name in drift}):
        values = (drift[f"{kind}/{m}"] for m in ("mean_abs", "relative", "one_minus_cos"))
        table.add_row(kind, *(f"{v:.3g}" for v in values))
    return table


def show(run: Run) -> None:
    """Print what a run found."""
    console = Console()
    for table in report(run):
        console.print(table)


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
@command
def main(cfg: DictConfig) -> None:
    run = Run.load(cfg.run, cfg.runs_dir)
    with lease(run.folder):
        evaluate_again(run, cfg.evaluation)
    show(run)


if __name__ == "__main__":
    main()
