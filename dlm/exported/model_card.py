"""The README.md of an exported model: its recipe, its use and its evaluation."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from dlm.config.targets import name_of
from dlm.evaluation.summary import label
from dlm.markdown import table
from dlm.runs.run import Run


def model_card(run: Run, settings: dict[str, Any], name: str, usage: str) -> str:
    """The card, in Markdown, of the model in a folder `name`. It has an accuracy table if the run was evaluated."""
    record = run.record
    source = record.get("parent", {}).get("source") or run.config.model.get("path", "random weights")
    sections = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [diffusion, text-diffusion]\n---",
        f"# {name}",
        f"A diffusion language model, converted from `{source}` (run `{run.id}`). It decodes blocks of "
        f"{settings['block_size']} tokens, several tokens per forward.",
        "## Use\n\n" + usage,
        "## Recipe\n\n" + recipe_table(run.config, settings, record.get("tokens")),
    ]
    evaluation = record.get("evaluation")
    if evaluation:
        sections.append("## Measured\n\n" + accuracy_table(evaluation))
    return "\n\n".join(sections) + "\n"


def recipe_table(config: DictConfig, settings: dict[str, Any], tokens: int | None) -> str:
    """A table of the choices of the conversion, one row each."""
    rows = {
        "attention": settings["attention_pattern"],
        "block size": settings["block_size"],
        "block anchor": settings["block_anchor"],
        "token shift": settings["token_shift"],
        "masking": name_of(config.masking._target_),
        "loss": name_of(config.loss._target_),
        "trained weights": name_of(config.trainable._target_),
        "tokens": f"{tokens or config.tokens:,}",
        "peak learning rate": config.lr,
        "seed": config.seed,
    }
    return table(["choice", "value"], [[name, str(value)] for name, value in rows.items()])


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
