"""Export a finished run as a Hugging Face folder that works without `dlm`: `python -m dlm.export run=ID to=FOLDER`.

The weights are copied unchanged. `dlm/exported/modeling_block_diffusion.py`, with the parent's class filled in, goes
beside them, so that `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True).generate(...)` gives the same
tokens in the same number of forwards as `dlm.decoding`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from omegaconf import DictConfig
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from dlm.attention.base import AttentionPattern
from dlm.config.build import default_decoding, make, requested_decoding
from dlm.config.command_line import hydra_command
from dlm.config.exported import MODEL_TYPE
from dlm.config.kinds import require_options
from dlm.config.settings import Export
from dlm.decoding.threshold import Threshold
from dlm.errors import one_line
from dlm.exported.model_card import model_card
from dlm.model.eos import eos_ids
from dlm.model.parent import layer_types
from dlm.model.positions import num_positions
from dlm.model.vision import reads_images
from dlm.runs.run import Run
from dlm.trainable.gate import has_gated
from dlm.types import Rows

MODULE = "modeling_block_diffusion"
GENERATION = "generation_config.json"
CLASS = "BlockDiffusionForCausalLM"
TEMPLATE = "Qwen3ForCausalLM", "Qwen3Config"  # placeholders of the parent's classes in the template
CONFIG = "BlockDiffusionConfig"
NEAR = 2048  # all pairs of so many positions are compared
NO_LIMIT = 32_768  # tokens of a row, if the model sets no limit
PAIRS = 2**23  # compared at a time


def export(run: Run, to: str | Path, threshold: float | None = None, decoding: dict[str, Any] | None = None) -> Path:
    """Write the run's model to the folder `to` and return the folder.

    `decoding`, the config of a decoder, becomes the default of the exported `generate`; `threshold` is short for a
    threshold decoder; with neither, the run's decoder is used. The folder is written under a temporary name and then
    renamed. Raises `ValueError` if the run has no model, if `to` is not empty or cannot be written, and for a model or
    decoder that the exported code cannot reproduce.
    """
    source, target = run.trained_model(), Path(to).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"to {str(to)!r} exists and is not an empty folder: name a new one, nothing is overwritten")
    if has_gated(source):
        raise ValueError(
            f"run {run.id} was trained with gated adapters, which act only at mask tokens: a plain Hugging Face folder "
            "cannot express that. Use it with python -m dlm.generate, or train with trainable=lora"
        )
    rule = commit_rule(run, threshold, decoding)
    if reads_images(AutoConfig.from_pretrained(source)):
        raise ValueError(
            f"run {run.id} reads images, and the exported code decodes text only: use the run with python -m "
            "dlm.generate image=…"
        )
    parent = empty_model(source)
    settings = diffusion_settings(run.config, source, parent) | rule
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, copy_function=shutil.copyfile)
        write_code(temporary, parent)
        write_configs(temporary, settings, MODEL_TYPE + parent.config.model_type)
        (temporary / "README.md").write_text(model_card(run, settings, target.name), encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise ValueError(f"to {str(to)!r} cannot be written ({one_line(error)}): name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def empty_model(folder: Path) -> PreTrainedModel:
    """The model of a folder, on the meta device. Raises `ValueError` if its class is not part of transformers."""
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        if (folder / GENERATION).exists():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ValueError(
            f"the model in {str(folder)!r} cannot be exported: its class must be part of transformers "
            f"({one_line(error)})"
        ) from error
    return model


def diffusion_settings(config: DictConfig, folder: Path, model: PreTrainedModel) -> dict[str, Any]:
    """The settings of the exported decoding for its config.json. Raises `ValueError` for a pattern whose mask the
    exported code does not implement."""
    pattern = make(config.attention)
    name = type(pattern).__module__.rpartition(".")[2]
    check_decode_mask(pattern, name, num_positions(model.config) or NO_LIMIT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = eos_ids(model, tokenizer)
    return {
        "attention_pattern": name,
        "attention_windows": layer_types(model),
        "block_size": pattern.block_size,
        "block_anchor": "absolute",
        "cacheable": pattern.cacheable,
        "whole_canvas": pattern.whole_canvas,
        "clean_context": pattern.clean_stream,
        "noisy_stream": pattern.noisy_stream,
        "token_shift": config.token_shift,
        "mask_token_id": tokenizer.mask_token_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
    }


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


def check_decode_mask(pattern: AttentionPattern, name: str, length: int) -> None:
    """Raises `ValueError` if the decoding mask of a pattern differs from that of the exported code: own and earlier
    blocks, or everything if nothing is cached. Compares all pairs of the first `NEAR` positions of a row of `length`
    tokens, and its last block with the whole row, where even the longest window shows."""
    row = torch.arange(length)
    for rows, columns in (
        (row[:NEAR], row[:NEAR]),
        (row[(length - 1) // pattern.block_size * pattern.block_size :], row),
    ):
        for chunk in rows.split(max(1, PAIRS // length)):
            for differs in differences(pattern, chunk[:, None], columns[None]):
                if differs.any():
                    n, column = differs.nonzero()[0].tolist()
                    raise ValueError(
                        f"attention={name} cannot be exported: dlm/exported/{MODULE}.py does not know its mask, which "
                        f"is another where position {int(chunk[n])} sees position {column}, or does not"
                    )


def differences(
    pattern: AttentionPattern, q: Int[Tensor, "Q 1"], k: Int[Tensor, "1 K"]
) -> Iterator[Bool[Tensor, "Q K"]]:
    """For each combination of streams in decoding, the pairs of positions at which a pattern differs from the exported
    mask. Finished tokens are in the clean stream, if there is one, and those of the current block in the noisy one."""
    q_block, k_block = q // pattern.block_size, k // pattern.block_size
    exported = k_block <= q_block if pattern.cacheable else torch.ones_like(q + k, dtype=torch.bool)
    if pattern.clean_stream and pattern.noisy_stream:
        occurring = {(True, True): exported | True, (False, True): k_block < q_block}
        occurring |= {(False, False): k_block == q_block, (True, False): k_block > q_block}
    else:
        occurring = {(not pattern.noisy_stream,) * 2: exported | True}
    for are_clean, pairs in occurring.items():
        q_rows, k_rows = (
            Rows(torch.full_like(p, c, dtype=torch.bool), p * 0, p) for p, c in zip((q, k), are_clean, strict=True)
        )
        yield (pattern.visible(q_rows, k_rows) != exported) & pairs


def write_code(folder: Path, parent: PreTrainedModel) -> None:
    """Write the modelling code with the parent's classes filled in."""
    text = resources.files("dlm.exported").joinpath(f"{MODULE}.py").read_text(encoding="utf-8")
    for placeholder, parent_class in zip(TEMPLATE, (type(parent), type(parent.config)), strict=True):
        text = text.replace(placeholder, parent_class.__name__)
    (folder / f"{MODULE}.py").write_text(text, encoding="utf-8")


def write_configs(folder: Path, settings: dict[str, Any], model_type: str) -> None:
    """Write the settings to config.json and the decoding defaults to generation_config.json, which keeps only the
    special tokens of the parent's. `model_type` is unknown to transformers, so that nothing loads the folder as a model
    of the parent's class, which would decode autoregressively."""
    auto_map = {"AutoConfig": f"{MODULE}.{CONFIG}", "AutoModelForCausalLM": f"{MODULE}.{CLASS}"}
    code = {"model_type": model_type, "architectures": [CLASS], "auto_map": auto_map, "use_cache": True}
    config, generation = folder / "config.json", folder / GENERATION
    parent_config = json.loads(config.read_text(encoding="utf-8"))
    special = json.loads(generation.read_text(encoding="utf-8")) if generation.exists() else {}
    special = {name: value for name, value in special.items() if name in ("bos_token_id", "pad_token_id")}
    special |= {"eos_token_id": settings["eos_token_id"], "do_sample": False}
    for path, values in ((config, parent_config | settings | code), (generation, special)):
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@hydra_command("export")
def main(cfg: DictConfig) -> None:
    require_options(cfg, "export", Export)
    run = Run.load(str(cfg.run), cfg.runs_dir)
    folder = export(run, cfg.to, cfg.threshold, requested_decoding(cfg, default_decoding(run.config)))
    print(f"{folder}: load it with AutoModelForCausalLM.from_pretrained({cfg.to!r}, trust_remote_code=True)")


if __name__ == "__main__":
    main()
