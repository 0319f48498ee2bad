"""A finished run as a Hugging Face folder that needs nothing of ours: `python -m dlm.export run=ID to=FOLDER`.

The weights are copied as they are. `dlm/exported/modeling_block_diffusion.py` goes beside them with the parent's class
filled in, so that `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True).generate(...)` gives the tokens
and the forwards of `dlm.decoding`.
"""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dlm.attention.base import AttentionPattern
from dlm.config.build import make
from dlm.console import command
from dlm.decoding.threshold import Threshold
from dlm.errors import one_line
from dlm.exported.model_card import model_card
from dlm.model.parent import layer_types
from dlm.runs.run import Run
from dlm.trainable.gate import has_gated
from dlm.types import Rows

MODULE = "modeling_block_diffusion"
CLASS = "BlockDiffusionForCausalLM"
TEMPLATE_PARENT = "Qwen3ForCausalLM"  # the class that stands for the parent's in the template


def export(run: Run, to: str | Path, threshold: float | None = None) -> Path:
    """Write the run's model to the folder `to` and return it.

    `threshold` is the default of its `generate`; None keeps the run's commit rule. The folder is written beside and
    renamed, so it is whole or not there. Raises `ValueError` where the run has no model, where `to` holds something or
    cannot be written, and for what the exported decoding cannot do.
    """
    source, target = run.trained_model(), Path(to).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"to {str(to)!r} exists and is not an empty folder: name a new one, nothing is overwritten")
    if has_gated(source):
        raise ValueError(
            f"run {run.id} was trained with gated adapters, which act only at mask tokens: a plain Hugging Face folder "
            "cannot express that. Use it with python -m dlm.generate, or train with trainable=lora"
        )
    parent = empty_model(source)
    settings = diffusion_settings(run.config, source, parent, threshold)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, copy_function=shutil.copyfile)
        write_code(temporary, type(parent).__name__)
        write_configs(temporary, settings)
        (temporary / "README.md").write_text(model_card(run, settings, target.name), encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise ValueError(f"to {str(to)!r} cannot be written ({one_line(error)}): name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def empty_model(folder: Path) -> PreTrainedModel:
    """The model of a folder without its weights. `ValueError` where its class is not one of transformers' own."""
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ValueError(
            f"the model in {str(folder)!r} cannot be exported: its class must be part of transformers "
            f"({one_line(error)})"
        ) from error
    return model


def diffusion_settings(
    config: DictConfig, folder: Path, model: PreTrainedModel, threshold: float | None
) -> dict[str, Any]:
    """What the exported decoding reads from its config.json, with the values of a run's config."""
    pattern = make(config.attention)
    name = type(pattern).__module__.rpartition(".")[2]
    check_decode_mask(pattern, name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {
        "attention_pattern": name,
        "attention_windows": layer_types(model),
        "block_size": pattern.block_size,
        "block_anchor": "absolute",
        "cacheable": pattern.cacheable,
        "clean_context": pattern.clean_stream,
        "noisy_stream": pattern.noisy_stream,
        "token_shift": config.token_shift,
        "mask_token_id": tokenizer.mask_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    } | commit_rule(config.decoding, threshold)


def commit_rule(decoding: DictConfig, threshold: float | None) -> dict[str, float | int | None]:
    """`threshold` and `tokens_per_step` of the exported decoding, one of them None: those of the run's decoder, or the
    `threshold` that is asked for. `ValueError` for a decoder that the exported code does not have."""
    decoder = make(decoding) if threshold is None else Threshold(threshold)
    settings = decoder.exported()
    if settings is None:
        raise ValueError(
            f"the run's decoding {decoding._target_} cannot be exported: give threshold=0.9, or another probability, "
            "for the exported generate()"
        )
    return {"threshold": None, "tokens_per_step": None} | settings


def check_decode_mask(pattern: AttentionPattern, name: str) -> None:
    """Refuse a pattern whose mask in decoding is not the one that the exported code makes: own and earlier blocks, or
    everything where nothing is cached."""
    size, blocks = pattern.block_size, 4
    position = (torch.arange(blocks)[:, None] * size + torch.tensor([0, size // 2, size - 1])).flatten()
    current = position >= (blocks - 1) * size  # the block that is being denoised
    clean = torch.full_like(current, not pattern.noisy_stream)
    if pattern.clean_stream and pattern.noisy_stream:
        clean = ~current
    rows = Rows(clean, torch.zeros_like(position), position)
    exported = position // size <= position[:, None] // size
    if not pattern.cacheable:
        exported = torch.ones_like(exported)
    if not torch.equal(pattern.visible(rows[:, None], rows[None]), exported):
        raise ValueError(f"attention={name} cannot be exported: dlm/exported/{MODULE}.py does not know its mask")


def write_code(folder: Path, parent_class: str) -> None:
    """The modelling code, its parent class filled in."""
    template = resources.files("dlm.exported").joinpath(f"{MODULE}.py").read_text(encoding="utf-8")
    (folder / f"{MODULE}.py").write_text(template.replace(TEMPLATE_PARENT, parent_class), encoding="utf-8")


def write_configs(folder: Path, settings: dict[str, Any]) -> None:
    """The settings into config.json, and the EOS that decoding stops at into generation_config.json."""
    code = {"architectures": [CLASS], "auto_map": {"AutoModelForCausalLM": f"{MODULE}.{CLASS}"}, "use_cache": True}
    for name, values in (
        ("config.json", settings | code),
        ("generation_config.json", {"eos_token_id": settings["eos_token_id"]}),
    ):
        path = folder / name
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps(kept | values, indent=2) + "\n", encoding="utf-8")


@hydra.main(version_base="1.3", config_path="../conf", config_name="export")
@command
def main(cfg: DictConfig) -> None:
    folder = export(Run.load(cfg.run, cfg.runs_dir), cfg.to, cfg.threshold)
    print(f"{folder}: load it with AutoModelForCausalLM.from_pretrained({cfg.to!r}, trust_remote_code=True)")


if __name__ == "__main__":
    main()
