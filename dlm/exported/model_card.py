"""The README.md of an exported model: its use, recipe and data, what was measured, its licence, and how to cite it. The
block of metadata at its head is what the hub indexes."""

from __future__ import annotations

import re
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from dlm.config.folders import config_folders
from dlm.config.targets import name_of
from dlm.evaluation.interval import Z95
from dlm.evaluation.summary import label
from dlm.markdown import table
from dlm.runs.run import Run

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
PAPER = re.compile(r"arXiv (\d{4}\.\d{4,5})")
CITATION = """\
```bibtex
@misc{{{key},
  title = {{{name}: a diffusion language model converted from {source}}},
  note  = {{Converted with dlm, run {run}{papers}}},
}}
```"""


def model_card(
    run: Run, settings: dict[str, Any], name: str, usage: str, license: str | None = None, sees: bool = False
) -> str:
    """The card, in Markdown, of the model in a folder `name`. It has the tables of what was measured, if anything was;
    `license` is the parent's, None if it is not known. `sees`: the model reads images."""
    record, config = run.record, run.config
    source = parent_of(run)
    evaluation = record.get("evaluation")
    sections = [
        metadata(source, license, sees),
        f"# {name}",
        f"A diffusion {'vision-' * sees}language model, converted from `{source}` (run `{run.id}`). It decodes blocks "
        f"of {settings['block_size']} tokens, several tokens per forward.",
        "## Use\n\n" + usage,
        "## Recipe\n\n" + recipe_table(config, settings, record),
        "## Data\n\n" + data_table(config, record),
    ]
    if evaluation:
        sections.append("## Measured\n\n" + accuracy_table(evaluation) + likelihoods(evaluation))
    if benchmarks := record.get("benchmarks"):
        sections.append("## Benchmarks\n\n" + benchmark_table(benchmarks))
    if drift := record.get("drift"):
        sections.append("## Drift\n\nThe distance of the weights from the parent's.\n\n" + drift_of(drift))
    sections.append("## Licence\n\n" + licence(source, license))
    sections.append("## Citation\n\n" + citation(run, name, source))
    return "\n\n".join(sections) + "\n"


def parent_of(run: Run) -> str:
    """The name of the parent, as the run was given it."""
    return run.record.get("parent", {}).get("source") or run.config.model.get("path", "random weights")


def is_hub_name(source: str) -> bool:
    """Whether a parent's name is that of a repository on the hub, as far as a name can tell."""
    return HUB_NAME.fullmatch(source) is not None


def metadata(source: str, license: str | None, sees: bool) -> str:
    values = {"library_name": "transformers", "pipeline_tag": "image-text-to-text" if sees else "text-generation"}
    values |= {"tags": ["diffusion", "text-diffusion", "block-diffusion"]}
    values |= {"license": license} if license else {}
    values |= {"base_model": source, "base_model_relation": "finetune"} if is_hub_name(source) else {}
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def recipe_table(config: DictConfig, settings: dict[str, Any], record: dict[str, Any]) -> str:
    """A table of the choices of the conversion and of the decoding, one row each."""
    rule = "threshold" if settings["threshold"] is not None else "tokens_per_step"
    rows = {
        "recipe": record.get("choices", {}).get("recipe"),
        "attention": settings["attention_pattern"],
        "block size": settings["block_size"],
        "block anchor": settings["block_anchor"],
        "token shift": settings["token_shift"],
        "masking": name_of(config.masking._target_),
        "loss": name_of(config.loss._target_),
        "trained weights": name_of(config.trainable._target_),
        "tokens": f"{record.get('tokens') or config.tokens:,}",
        "peak learning rate": config.lr,
        "seed": config.seed,
        f"decoding: {rule}": settings[rule],
    }
    return table(["choice", "value"], [[name, str(value)] for name, value in rows.items() if value is not None])


def data_table(config: DictConfig, record: dict[str, Any]) -> str:
    """A table of what the model was trained on, and how much of it."""
    budget = record.get("budget", {})
    rows = {
        "data": record.get("choices", {}).get("data") or name_of(config.data._target_),
        "source": OmegaConf.select(config, "data.path"),
        "tokens of a row": OmegaConf.select(config, "data.length"),
        "fingerprint": record.get("data", {}).get("fingerprint"),
    }
    known = {what: number for what, number in budget.items() if number is not None}  # not every model has FLOPs
    rows |= {f"trained on: {what.replace('_', ' ')}": f"{number:,}" for what, number in known.items()}
    return table(["", ""], [[name, str(value)] for name, value in rows.items() if value is not None])


def accuracy_table(evaluation: dict[str, Any]) -> str:
    """A table of exact match of the parent and of the dLM under every decoder, with intervals and forwards."""
    rows = [
        [
            label(model, g),
            f"{g['accuracy']:.1%}",
            f"{g['low']:.1%} – {g['high']:.1%}",
            str(g["n"]),
            f"{g['tpf']:.2f}",
            f"{g['nfe']:.1f}",
        ]
        for model in ("parent", "dLM")
        for g in evaluation[model.lower()]["generation"]
    ]
    header = ["", "exact match", "95 % interval", "items", "tokens/forward", "forwards/answer"]
    return table(header, rows) + "\n\nOne run, one seed; every forward of the network is counted."


def likelihoods(evaluation: dict[str, Any]) -> str:
    """A sentence for each model with a likelihood of held-out prose; the dLM's is a bound."""
    found = {model: evaluation[model].get("likelihood") for model in ("parent", "dlm")}
    words = {"parent": "The parent's", "dlm": "The dLM's (a bound)"}
    return "".join(
        f"\n\n{words[model]} negative log-likelihood of held-out prose: {value['nats']:.3f} ± "
        f"{value['standard_error']:.3f} nats per token, {value['bits_per_byte']:.3f} bits per byte."
        for model, value in found.items()
        if value
    )


def benchmark_table(benchmarks: dict[str, dict[str, Any]]) -> str:
    """A table of the scores of lm-evaluation-harness, of each model, with standard errors."""
    rows = []
    for model, tasks in benchmarks.items():
        for task, score in tasks.items():
            for metric, value in score["metrics"].items():
                name, _, which = metric.partition(",")
                error = score["metrics"].get(f"{name}_stderr,{which}")
                if not name.endswith("_stderr"):
                    interval = "" if error is None else f" ± {Z95 * error:.1%}"
                    rows.append([task, name, model, f"{value:.1%}{interval}", str(score["n"])])
    return table(["task", "metric", "model", "score, 95 % interval", "items"], rows)


def drift_of(drift: dict[str, float]) -> str:
    """A table of the drift, a row for every kind of module."""
    kinds = sorted({name.partition("/")[0] for name in drift})
    columns = {"relative": "‖θ−θ₀‖/‖θ₀‖", "mean_abs": "mean |θ−θ₀|", "one_minus_cos": "1 − cos"}
    rows = [[kind, *(f"{drift.get(f'{kind}/{name}', float('nan')):.4g}" for name in columns)] for kind in kinds]
    return table(["", *columns.values()], rows)


def licence(source: str, license: str | None) -> str:
    if license is None:
        return f"That of the parent, `{source}`, whose terms hold for these weights: they are not recorded here."
    return f"{license}, the licence of the parent, `{source}`, from whose weights these were made."


def citation(run: Run, name: str, source: str) -> str:
    """How to cite the model, with the papers that the recipe's YAML names."""
    recipe = run.record.get("choices", {}).get("recipe")
    files = [folder / "recipe" / f"{recipe}.yaml" for folder in config_folders()]
    text = next((file.read_text(encoding="utf-8") for file in files if file.exists()), "")
    papers = dict.fromkeys(PAPER.findall(text))
    by = f"; the recipe is that of arXiv {', '.join(papers)}" if papers else ""
    key = re.sub(r"\W+", "_", name)
    return CITATION.format(key=key, name=name, source=source, run=run.id, papers=by)
