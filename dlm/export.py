"""Export a finished run as a folder that works without `dlm`: `python -m dlm.export run=ID to=FOLDER`.

`format=hf` decodes with plain transformers; the others are what inference engines load (`dlm/format/`). A combination
that an engine would silently decode otherwise than it was trained is refused.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel

from dlm.config.build import default_decoding, make, requested_decoding
from dlm.config.command_line import hydra_command
from dlm.config.kinds import require_options
from dlm.config.settings import Export
from dlm.decoding.threshold import Threshold
from dlm.errors import one_line
from dlm.exported.hub import contents, parent_license, publish, require_publishable, split_weights
from dlm.exported.model_card import model_card, parent_of
from dlm.format.base import Converted, Format
from dlm.format.hf import GENERATION, HF
from dlm.model.eos import eos_ids
from dlm.model.layers import layer_types
from dlm.model.vision import auto_class, reads_images
from dlm.runs.run import Run
from dlm.trainable.gate import has_gated


def export(
    run: Run,
    to: str | Path,
    threshold: float | None = None,
    decoding: dict[str, Any] | None = None,
    layout: Format | None = None,
    license: str | None = None,
    repo: str | None = None,
) -> Path:
    """Write the run's model to the folder `to`, in a `layout` (by default `HF`), and return the folder.

    `decoding`, the config of a decoder, becomes the default of the exported decoding; `threshold` is short for a
    threshold decoder; with neither, the run's decoder is used. The model card names the parent's `license` and, if it
    is to be published, the `repo` on the hub. The folder is written under a temporary name, verified, and then renamed.
    Raises `ValueError` if the run has no model, if `to` is not empty or cannot be written, and for a model or decoder
    that the layout cannot reproduce.
    """
    layout = layout or HF()
    source, target = plain_weights(run), new_folder(to)
    made = converted(run, source, commit_rule(run, threshold, decoding))
    layout.require(made)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        layout.write(made, temporary)
        usage, sees = layout.usage(made, repo or target.name), reads_images(made.model.config)
        card = model_card(run, made.settings, target.name, usage, license, sees)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        layout.verify(temporary)
        temporary.replace(target)
    except OSError as error:
        raise ValueError(f"to {str(to)!r} cannot be written ({one_line(error)}): name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def plain_weights(run: Run) -> Path:
    """The folder of a run's model. Raises `ValueError` if there is none, or if it holds more than weights."""
    folder = run.trained_model()
    if has_gated(folder):
        raise ValueError(
            f"run {run.id} was trained with gated adapters, which act only at mask tokens: a plain Hugging Face folder "
            "cannot express that. Use it with python -m dlm.generate, or train with trainable=lora"
        )
    return folder


def new_folder(to: str | Path) -> Path:
    """The folder to write to. Raises `ValueError` if there is something already."""
    target = Path(to).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"to {str(to)!r} exists and is not an empty folder: name a new one, nothing is overwritten")
    return target


def empty_model(folder: Path) -> PreTrainedModel:
    """The model of a folder, on the meta device. Raises `ValueError` if its class is not part of transformers."""
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = auto_class(config).from_config(config)
        if (folder / GENERATION).exists():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ValueError(
            f"the model in {str(folder)!r} cannot be exported: its class must be part of transformers "
            f"({one_line(error)})"
        ) from error
    return model


def converted(run: Run, folder: Path, rule: dict[str, Any]) -> Converted:
    """What is exported of a run, whose weights are in `folder`, with the settings of its commit rule."""
    config, model = run.config, empty_model(folder)
    pattern = make(config.attention)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = eos_ids(model, tokenizer)
    settings = {
        "attention_pattern": type(pattern).__module__.rpartition(".")[2],
        "attention_windows": layer_types(model),
        "block_size": pattern.block_size,
        "block_anchor": pattern.block_anchor.value,
        "cacheable": pattern.cacheable,
        "whole_canvas": pattern.whole_canvas,
        "clean_context": pattern.clean_stream,
        "noisy_stream": pattern.noisy_stream,
        "token_shift": config.token_shift,
        "mask_token_id": tokenizer.mask_token_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
    }
    trains_ar = OmegaConf.select(config, "auxiliary.ar") is not None
    return Converted(folder, model, pattern, settings | rule, trains_ar)


def commit_rule(run: Run, threshold: float | None, decoding: dict[str, Any] | None) -> dict[str, float | int | None]:
    """`threshold` and `tokens_per_step` of the exported decoding, one of them None, from the requested decoder or else
    the run's. Raises `ValueError` for a decoder that the exported code does not implement."""
    if threshold is not None and decoding:
        raise ValueError(f"threshold {threshold} and decoding exclude each other: give decoding.threshold={threshold}")
    config = decoding or default_decoding(run.config)
    decoder = make(config) if threshold is None else Threshold(threshold)
    settings = decoder.exported()
    if settings is None:
        whose = "decoding" if decoding else "the run's decoding"
        raise ValueError(
            f"{whose} {config['_target_']} cannot be exported: give threshold=0.9, or another probability, "
            "for the exported generate()"
        )
    if decoding and (decoder.rule.temperature, decoder.rule.top_p) != (0, 1):
        raise ValueError(
            "decoding.temperature and decoding.top_p cannot be exported: leave them out, and give a temperature to the "
            "exported generate()"
        )
    return {"threshold": None, "tokens_per_step": None} | settings


@hydra_command("export")
def main(cfg: DictConfig) -> None:
    require_options(cfg, "export", Export)
    run = Run.load(str(cfg.run), cfg.runs_dir)
    decoding, layout = requested_decoding(cfg, default_decoding(run.config)), make(cfg.format)
    api = None if cfg.hub is None else HfApi()
    license = cfg.license or parent_license(parent_of(run), api)
    if cfg.hub is not None:
        require_publishable(cfg.hub, license)
    elif cfg.upload:
        raise ValueError("upload=true does not say where to: give hub=USER/NAME as well")
    folder = export(run, cfg.to, cfg.threshold, decoding, layout, license, cfg.hub)
    print(f"{folder}: its README.md says how to load it")
    if cfg.hub is not None:
        split_weights(folder)
        print(contents(folder))
        if cfg.upload:
            print(publish(folder, cfg.hub, cfg.private, api))
        else:
            print(f"nothing was uploaded: upload=true publishes these files as {cfg.hub}")


if __name__ == "__main__":
    main()
