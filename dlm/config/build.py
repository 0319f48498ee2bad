"""Builds the objects of a run from its config."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning import Callback
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from dlm.attention.ar import AR
from dlm.config.budget import Budget
from dlm.config.folders import CONF
from dlm.config.kinds import require_arguments
from dlm.config.targets import require_known
from dlm.conversion.module import Conversion
from dlm.conversion.objective import Objective
from dlm.conversion.schedule import Schedules
from dlm.data.module import PackedData
from dlm.masking.base import Masking
from dlm.model.denoiser import Denoiser
from dlm.model.parent import Parent, load_parent, load_tokenizer, resolve
from dlm.model.positions import require_positions
from dlm.model.skeleton import load_for_shards
from dlm.model.vision import load_config, load_processor, reads_images
from dlm.runs.renamed import PRESENT, with_targets
from dlm.trainable.base import Trainable


def make(node: DictConfig | dict[str, Any], **kwargs: Any) -> Any:
    """Instantiate a config whose `_target_`s, under their present or an earlier name, are code that a config may name.
    Raises `ValueError` for other targets and for arguments of a wrong type, and that of a constructor unwrapped."""
    is_config = OmegaConf.is_config(node)
    plain = with_targets(OmegaConf.to_container(node, resolve=True) if is_config else node, PRESENT)
    require_known(plain)
    require_arguments(plain, node._get_full_key(None) if is_config else "")
    try:
        return instantiate(plain, _convert_="all", **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def make_callbacks(nodes: DictConfig | None) -> list[Callback]:
    """The callbacks of a config, without those that are null. Raises `ValueError` for an object that is no Lightning
    callback."""
    callbacks = {name: make(node) for name, node in (nodes or {}).items() if node is not None}
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):
            raise ValueError(f"callbacks.{name} {callback!r} is no callback of Lightning: give it the _target_ of one")
    return list(callbacks.values())


@dataclass
class Experiment:
    """The objects of a run, which trains for `num_steps` optimizer steps."""

    parent: Parent
    denoiser: Denoiser
    conversion: Conversion
    data: PackedData
    trainable: Trainable
    budget: Budget
    num_steps: int


def build(cfg: DictConfig, for_shards: bool = False) -> Experiment:
    """Build the objects of a run; `for_shards`, if possible with layers that get their weights where they are sharded.
    Raises `ValueError` for a bad config, before the parent is loaded if possible."""
    pattern = make(cfg.attention)
    masking, objective, optimizer = make_masking(cfg), make_objective(cfg), make(cfg.optimizer)
    rollout, block_schedule = (make(node) if (node := cfg.get(k)) else None for k in ("rollout", "block_schedule"))
    objects = {"masking": masking, "loss": objective.loss, "auxiliary": objective.auxiliary}
    schedules = Schedules(OmegaConf.to_container(cfg.schedule, resolve=True), objects) if cfg.get("schedule") else None
    trainable, data = make(cfg.trainable), make(cfg.data)
    requested_decoding(cfg)
    pattern.check(cfg.data.length, cfg.token_shift)
    if masking.views > 1 and not pattern.noisy_stream:
        raise ValueError(
            f"masking.views {masking.views} needs a noisy stream to hide tokens in, and this attention pattern has "
            "none: set masking.views=1"
        )
    for term in objective.auxiliary.values():
        term.check(pattern, masking)
    for size in block_schedule.sizes if block_schedule else ():
        if cfg.data.length % size:
            raise ValueError(f"block_schedule size {size} must divide data.length {cfg.data.length}: choose another")
    budget = Budget.of(cfg, rows_of_a_step(cfg))
    reads_weights = objective.auxiliary or rollout or trainable.adds_weights or cfg.get("decoding")
    parent = make_for_shards(cfg.model) if for_shards and not reads_weights else make(cfg.model)
    require_positions(parent.model, cfg.data.length, f"data.length {cfg.data.length}")
    for term in objective.auxiliary.values():
        term.bind(parent)
    if rollout:
        rollout.bind(parent)
    parent.model = trainable.apply(parent.model, parent.mask_id)
    data.processor = parent.processor
    data.prepare(parent.tokenizer, pattern.tail, 0, cfg.seed)
    denoiser = Denoiser(parent.model, pattern, parent.mask_id, cfg.token_shift, parent.layer_types, parent.span_ids)
    conversion = Conversion(denoiser, masking, objective, optimizer, cfg.seed, rollout, schedules, block_schedule)
    conversion.deferred = parent.deferred
    num_steps = budget.num_steps(data, conversion)
    data.train_rows.num_rows = num_steps * budget.rows
    return Experiment(parent, denoiser, conversion, data, trainable, budget, num_steps)


def make_for_shards(node: DictConfig) -> Parent:
    """The parent of a config, with empty layers if it comes from files that allow that."""
    options = with_targets(OmegaConf.to_container(node, resolve=True), PRESENT)
    require_known(options)
    if get_object(options.pop("_target_")) is load_parent:
        return load_for_shards(**options)
    return make(node)


def make_tokenizer(node: DictConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a config's parent, if possible without loading the weights."""
    options = with_targets(OmegaConf.to_container(node, resolve=True), PRESENT)
    require_known(options)
    if get_object(options.pop("_target_")) is load_parent:
        return load_tokenizer(**options)
    return make(node).tokenizer


def make_processor(node: DictConfig, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin | None:
    """The processor of a config's parent, if possible without loading the weights; None if it reads text only."""
    options = with_targets(OmegaConf.to_container(node, resolve=True), PRESENT)
    require_known(options)
    if get_object(options["_target_"]) is not load_parent:
        return make(node).processor
    folder = resolve(options["path"])
    of_hub = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
    return load_processor(folder, tokenizer, of_hub) if reads_images(load_config(folder, of_hub)) else None


def first_rows(cfg: DictConfig, num_rows: int) -> PackedData:
    """The data of a config with so many of its first rows, made without the weights of the model."""
    tokenizer, data = make_tokenizer(cfg.model), make(cfg.data)
    data.processor = make_processor(cfg.model, tokenizer)
    data.prepare(tokenizer, make(cfg.attention).tail, num_rows, cfg.seed)
    return data


def make_masking(cfg: DictConfig) -> Masking:
    """The forward process of a config. Configs without a noise level or a kernel get the defaults of `Masking`."""
    parts = {key: make(cfg[key]) for key in ("noise_level", "kernel") if key in cfg}
    return make(cfg.masking, **parts)


def make_objective(cfg: DictConfig) -> Objective:
    """The training objective of a config."""
    return Objective(make(cfg.loss), {name: make(node) for name, node in (cfg.get("auxiliary") or {}).items()})


def default_decoding(config: DictConfig) -> DictConfig:
    """The decoder of a run's config, by default the threshold decoder of conf/decoding/threshold.yaml."""
    return config.get("decoding") or OmegaConf.load(CONF / "decoding" / "threshold.yaml")


def requested_decoding(cfg: DictConfig, base: DictConfig | None = None) -> dict[str, Any] | None:
    """The resolved config of the decoder that a command requests; None if it requests none. `decoding=NAME` selects a
    decoder; `+decoding.threshold=0.5` changes `base`, by default the threshold decoder. Raises `ValueError` if the
    decoder cannot be built."""
    requested = cfg.get("decoding")
    if not requested:
        return None
    is_complete = "_target_" in requested
    decoding = requested if is_complete else OmegaConf.merge(base or default_decoding(OmegaConf.create()), requested)
    plain = OmegaConf.to_container(decoding, resolve=True)
    make(OmegaConf.create({"decoding": plain}).decoding)  # errors name options by their full keys
    return plain


def rows_of_a_step(cfg: DictConfig) -> int:
    """The rows of one optimizer step, of all processes and accumulated batches."""
    return cfg.data.batch_size * cfg.trainer.accumulate * num_processes(cfg)


def num_processes(cfg: DictConfig) -> int:
    """The number of processes that train a run together, devices × nodes. Configs without these options mean 1."""
    factors = {name: cfg.trainer.get(name, 1) for name in ("devices", "num_nodes")}
    for name, value in factors.items():
        if type(value) is not int or value < 1:
            raise ValueError(
                f"trainer.{name} {value!r} must be a whole number of at least 1: the size of a step, and with it the "
                "run, depends on it"
            )
    return math.prod(factors.values())


def ar_denoiser(parent: Parent) -> Denoiser:
    """The autoregressive parent as a `Denoiser`."""
    return Denoiser(parent.model, AR(), parent.mask_id, True, parent.layer_types, parent.span_ids)


def converted_denoiser(cfg: DictConfig, parent: Parent, model: PreTrainedModel | None = None) -> Denoiser:
    """The dLM of a config: `model` (by default the parent's) under the config's attention pattern and token shift."""
    pattern = make(cfg.attention)
    model = model or parent.model
    return Denoiser(model, pattern, parent.mask_id, cfg.token_shift, parent.layer_types, parent.span_ids)


def choices() -> dict[str, str]:
    """The selected option of every config group, for the record; {} outside a Hydra job."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return {}
    options = OmegaConf.to_container(HydraConfig.get().runtime.choices)
    return {group: name for group, name in options.items() if not group.startswith("hydra/")}
