"""Loads a folder that `dlm.export` wrote as the dLM that it was: the same weights, pattern and commit rule, with our
engine. The code that lies in the folder is not run."""

from __future__ import annotations

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from dlm.attention import block_sparse
from dlm.attention.base import AttentionPattern
from dlm.config.build import make
from dlm.config.folders import CONF, config_folders
from dlm.decoding.base import Decoder
from dlm.errors import one_line
from dlm.model.denoiser import Denoiser
from dlm.model.device import AUTO, usable_device
from dlm.model.implementation import supported, with_attention
from dlm.model.parent import DTYPES, Parent, as_parent
from dlm.model.vision import auto_class, load_processor, reads_images

MODEL_TYPE = "block_diffusion_"  # the beginning of the model type of an exported model; its parent's follows
SETTINGS = ("attention_pattern", "block_size", "whole_canvas", "token_shift", "threshold", "tokens_per_step")


def is_exported(folder: Path) -> bool:
    """Whether `dlm.export` wrote this folder."""
    return (folder / "config.json").is_file() and str(read_config(folder).get("model_type")).startswith(MODEL_TYPE)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. Raises `ValueError` if it is not JSON."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is no JSON ({one_line(error)}): export the run again") from error


class ExportedFolder:
    """An exported dLM, whose weights are loaded on first use, onto `device` (see `usable_device`). Raises `ValueError`
    if this machine has no such device, or the folder lacks a setting of the decoding, as one of an earlier version
    may."""

    def __init__(self, folder: Path, device: str = AUTO):
        self.device, self.folder = usable_device(device), folder
        if missing := [name for name in SETTINGS if name not in self.config]:
            raise ValueError(f"{self.folder / 'config.json'} lacks {', '.join(missing)}: export the run again")

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_config(self.folder)

    @cached_property
    def converted(self) -> Parent:
        """The weights as a model of their parent's class, in the precision that they are stored in."""
        values = self.config | {"model_type": self.config["model_type"].removeprefix(MODEL_TYPE)}
        values = {key: value for key, value in values.items() if key not in (*SETTINGS, "auto_map", "architectures")}
        config = AutoConfig.for_model(**values)
        kind = auto_class(config)

        def load(implementation: str):
            return kind.from_pretrained(
                self.folder,
                config=config,
                attn_implementation=implementation,
                dtype=DTYPES.get(self.config.get("dtype"), "auto"),
                use_safetensors=True,
            )

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, config=config)
            model, implementation = supported(load, block_sparse.NAME)
        except Exception as error:  # transformers raises many types
            raise ValueError(f"{str(self.folder)!r} could not be loaded: {one_line(error)}") from error
        model = with_attention(model, implementation).to(self.device)
        processor = self.processor(tokenizer) if reads_images(config) else None
        return as_parent(model, tokenizer, str(self.folder), None, check=False, processor=processor)

    def processor(self, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin | None:
        """The processor of a model that reads images (see `load_processor`). It asks for the type of the model, which
        transformers do not know and warn of."""
        logger = logging.getLogger("transformers.configuration_utils")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            return load_processor(str(self.folder), tokenizer, {"trust_remote_code": False})
        finally:
            logger.setLevel(level)

    @property
    def pattern(self) -> AttentionPattern:
        """The attention pattern, by its option of `attention`."""
        config, name = self.config, f"attention/{self.config['attention_pattern']}.yaml"
        file = next((folder / name for folder in config_folders() if (folder / name).exists()), None)
        if file is None:
            raise ValueError(
                f"{str(self.folder)!r} has the pattern of {name}, which is in no conf/: add it to one here"
            )
        node = OmegaConf.load(file)
        if "canvas" in node:
            node.canvas = "whole" if config["whole_canvas"] else "block"
        if "block_anchor" in node:
            node.block_anchor = config.get("block_anchor", node.block_anchor)
        return make(OmegaConf.create({"block_size": config["block_size"], "attention": node}).attention)

    @cached_property
    def dlm(self) -> Denoiser:
        parent = self.converted
        shift = self.config["token_shift"]
        return Denoiser(parent.model, self.pattern, parent.mask_id, shift, parent.layer_types, parent.span_ids)

    @property
    def decoding(self) -> dict[str, Any]:
        """The config of the decoder that the exported `generate` is."""
        name = "fixed" if self.config["threshold"] is None else "threshold"
        values = OmegaConf.to_container(OmegaConf.load(CONF / "decoding" / f"{name}.yaml"))
        return values | {key: self.config[key] for key in ("threshold", "tokens_per_step") if key in values}

    @property
    def decoder(self) -> Decoder:
        """The decoder of the exported `generate`."""
        return make(self.decoding)
