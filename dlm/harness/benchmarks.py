"""Benchmarks of lm-evaluation-harness, asked of a run and its parent or of an exported folder.

<run>/benchmarks/answers-<digest>.jsonl   every answer with its cost, of one model asked in one way
                 results.json             the scores, by model and task; a run's record has them, too
                 items-<model>-<task>.jsonl   every item of the last evaluation: its answer, target and scores
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlm.config.build import make
from dlm.config.exported import ExportedFolder
from dlm.config.finished import FinishedRun
from dlm.config.settings import Harness
from dlm.data.pictures import require_processor
from dlm.decoding.base import Decoder
from dlm.decoding.fixed import Fixed
from dlm.errors import one_line
from dlm.evaluation.items import EVALUATION_VERSION
from dlm.harness.answers import Answers, Cost
from dlm.harness.task_loading import Tasks, load_tasks
from dlm.model.denoiser import Denoiser
from dlm.model.device import device_name
from dlm.model.parent import Parent
from dlm.runs.digest import FILE_DIGITS, checksum, digest, weights_fingerprint
from dlm.runs.storage import read_json, write_atomically, write_json

SAID_BY_TASKS = ("temperature", "top_p")  # and not by the decoder
RESAMPLES = 1000  # of the bootstrap, for metrics without a formula of their standard error


@dataclass(frozen=True)
class Asked:
    """A model to ask, by the name that its scores get. Its answers depend on its `weights`, on `how` it is used, and on
    the request."""

    name: str
    denoiser: Denoiser
    converted: Parent
    decoder: Decoder
    weights: str
    how: dict[str, Any]

    def require_answers(self, tasks: dict[str, Any], chat_template: bool) -> None:
        """Raises `ValueError` for a chat template that there is not, and for a task about pictures that the model
        cannot answer."""
        if chat_template and not self.converted.reader.chat_template:
            raise ValueError(f"the tokenizer of the {self.name} has no chat template: set harness.chat_template=false")
        for name, task in tasks.items():
            if getattr(task, "MULTIMODAL", False):
                require_processor(self.converted.processor, f"task {name}")
                if task.OUTPUT_TYPE != "generate_until":
                    raise ValueError(
                        f"task {name} scores given answers about pictures, which is not to be had: choose one whose "
                        "output_type is generate_until"
                    )


def models(found: FinishedRun | ExportedFolder, decoding: dict[str, Any], parent: bool) -> Iterator[Asked]:
    """The dLM, which decodes as the resolved config `decoding` says, and, with `parent`, its parent, loaded as they are
    needed. Raises `ValueError` for the parent of an exported folder, which has none beside it."""
    if parent and isinstance(found, ExportedFolder):
        raise ValueError("harness.parent=true needs a run: an exported folder has no parent beside it")
    dlm = found.dlm
    how = {
        "attention": type(dlm.pattern).__name__,
        **dlm.pattern.settings,
        "token_shift": dlm.token_shift,
        "decoding": {key: value for key, value in decoding.items() if key not in SAID_BY_TASKS},
        "files": {key: checksum(Path(value)) for key, value in decoding.items() if is_file(value)},
    }
    yield Asked("dlm", dlm, found.converted, make(decoding), weights_fingerprint(found.folder), how)
    if parent:
        fingerprint = found.run.record["parent"]["fingerprint"]
        yield Asked("parent", found.ar, found.parent, Fixed(1), fingerprint, {"attention": "AR"})


def is_file(value: Any) -> bool:
    """Whether a value of a decoder names a file that it reads, such as a learned policy."""
    return isinstance(value, str) and Path(value).is_file()


def benchmark(
    found: FinishedRun | ExportedFolder,
    decoding: dict[str, Any],
    tasks: list[str],
    settings: Harness,
    allow_code_execution: bool,
    folder: Path,
) -> dict[str, dict[str, Any]]:
    """The scores of every model on every task, {model: {task: …}}, which are also written to `folder`. Raises
    `ValueError` for a task that is not known, cannot be loaded, or runs code without permission, before anything is
    decoded."""
    loaded = load_tasks(tasks, settings.include, allow_code_execution)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{str(folder)!r} cannot be written ({one_line(error)}): set harness.out=FOLDER") from error
    results = {asked.name: ask(asked, loaded, settings, folder) for asked in models(found, decoding, settings.parent)}
    path = folder / "results.json"
    write_json(path, merged(read_json(path) if path.exists() else {}, results))
    return results


def merged(kept: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Earlier scores of other models and tasks, and these."""
    return kept | {name: kept.get(name, {}) | scores for name, scores in results.items()}


def ask(asked: Asked, tasks: Tasks, settings: Harness, folder: Path) -> dict[str, Any]:
    """The scores of one model, by task and group."""
    from lm_eval import evaluator, simple_evaluate

    from dlm.harness.model import DiffusionLM

    asked.require_answers(tasks.tasks, settings.chat_template)
    samples = {"exact": None, "nelbo": settings.samples}[settings.likelihood]
    identity = {"weights": asked.weights, "samples": samples, "seed": settings.seed, "version": EVALUATION_VERSION}
    identity |= asked.how
    answers = Answers(folder / f"answers-{digest(identity, FILE_DIGITS)}.jsonl")
    model = DiffusionLM(
        asked.denoiser,
        asked.converted.tokenizer,
        asked.decoder,
        answers,
        settings.batch_size,
        samples=samples,
        seed=settings.seed,
        processor=asked.converted.processor,
        is_rendered=settings.chat_template,
    )
    with patch.object(evaluator, "get_git_commit_hash", lambda: None):  # git complains outside of a repository
        found = simple_evaluate(
            model,
            tasks=tasks.asked,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            gen_kwargs={"max_gen_toks": settings.max_gen_toks} if settings.max_gen_toks else None,
            apply_chat_template=settings.chat_template,
            system_instruction=settings.system,
            bootstrap_iters=RESAMPLES,
            confirm_run_unsafe_code=True,  # `require_sandboxed` has asked
            task_manager=tasks.manager,
        )
    for task, items in found["samples"].items():
        write_items(folder / f"items-{asked.name}-{task}.jsonl", items)
    about = recorded_settings(asked, settings, samples)
    return {task: scores_of(task, found, model.costs) | {"settings": about} for task in found["results"]}


def recorded_settings(asked: Asked, settings: Harness, samples: int | None) -> dict[str, Any]:
    """What the scores of a model were made with. `samples` are the draws of a likelihood; None: it is exact."""
    return {
        **asked.how,
        "likelihood": settings.likelihood if samples is None else f"{settings.likelihood}, {samples} draws",
        "limit": settings.limit,
        "chat_template": settings.chat_template,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "lm_eval": version("lm_eval"),
        "device": device_name(asked.denoiser.model.device),
    }


def scores_of(task: str, found: dict[str, Any], costs: dict[str, Cost]) -> dict[str, Any]:
    """The metrics of a task or group, `exact_match,strict-match` and the like, with the standard error of each, the
    number of items, and what the answers took."""
    leaves = leaves_of(task, found.get("group_subtasks", {}))
    values = {key: value for key, value in found["results"][task].items() if isinstance(value, int | float)}
    cost = sum((costs[leaf] for leaf in leaves), Cost())
    return {
        "metrics": {key: value for key, value in values.items() if "," in key},
        "n": sum(found["n-samples"][leaf]["effective"] for leaf in leaves),
        "num_fewshot": found["n-shot"].get(task),
        "version": found["versions"].get(task),
        "generation": (found["configs"].get(task) or {}).get("generation_kwargs"),
        **cost.summary(),
    }


def leaves_of(task: str, children: dict[str, list[str]]) -> list[str]:
    """The single tasks of a group; of a task, itself."""
    return [leaf for child in children[task] for leaf in leaves_of(child, children)] if children.get(task) else [task]


def write_items(path: Path, items: list[dict[str, Any]]) -> None:
    """Write what was answered to every item of a task, one line of JSON each."""
    names = ("doc_id", "filter", "target", "resps", "filtered_resps")
    lines = [{name: item[name] for name in (*names, *item["metrics"])} for item in items]
    write_atomically(path, "".join(json.dumps(line, default=str) + "\n" for line in lines))


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """Print a line for every metric of every task and model."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)  # of 80 columns
    for column in ("task", "metric", "model"):
        table.add_column(column, overflow="fold", min_width=len("parent"))
    table.add_column("score ± error", no_wrap=True)
    for column in ("items", "NFE", "TPF", "tok/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for task in dict.fromkeys(task for scores in results.values() for task in scores):
        for model, scores in results.items():
            score = scores[task]
            for metric, value in score["metrics"].items():
                name, _, which = metric.partition(",")
                if name.endswith("_stderr"):
                    continue
                error = score["metrics"].get(f"{name}_stderr,{which}")
                text = f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")
                rate = score["tokens_per_second"]
                cost = f"{score['nfe']:.1f}", f"{score['tpf']:.2f}", "" if rate is None else f"{rate:.0f}"
                label = name if which == "none" else f"{name} ({which})"
                table.add_row(Text(task), Text(label), model, text, str(score["n"]), *cost)
    cut = sum(score["cut_contexts"] for scores in results.values() for score in scores.values())
    if cut:
        table.caption = f"{cut} contexts were longer than the model's positions and were cut on their left"
    Console().print(table)
