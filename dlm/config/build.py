"""From a config to the objects of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from dlm.attention.ar import AR
from dlm.config.folders import CONF
from dlm.config.kinds import require_arguments
from dlm.config.targets import require_known
from dlm.conversion.module import Conversion
from dlm.conversion.objective import Objective
from dlm.conversion.schedule import Schedules
from dlm.data.module import PackedData
from dlm.masking.base import Masking
from dlm.model.denoiser import Denoiser
from dlm.model.parent import Parent
from dlm.model.positions import require_positions
from dlm.runs.renamed import PRESENT, with_targets
from dlm.trainable.base import Trainable


def make(node: DictConfig | dict[str, Any], **kwargs: Any) -> Any:
    """`instantiate` for code that a config may name, by its present or an earlier name, and for values of the types
    that this code takes. Raises the `ValueError` of a constructor unwrapped."""
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
    """The callbacks that a config adds to a training, those that are null left out; `ValueError` for something else."""
    made = {name: make(node) for name, node in (nodes or {}).items() if node is not None}
    for name, callback in made.items():
        if not isinstance(callback, Callback):
            raise ValueError(f"callbacks.{name} {callback!r} is no callback of Lightning: give it the _target_ of one")
    return list(made.values())


@dataclass
class Experiment:
    """Everything that trains, for `num_steps` optimizer steps of `step_tokens` tokens."""

    parent: Parent
    denoiser: Denoiser
    conversion: Conversion
    data: PackedData
    trainable: Trainable
    num_steps: int
    step_tokens: int


def build(cfg: DictConfig) -> Experiment:
    """The objects of a run; whatever is wrong with the config is said before the parent is loaded."""
    pattern = make(cfg.attention)
    masking, objective, optimizer = make_masking(cfg), make_objective(cfg), make(cfg.optimizer)
    rollout, block_schedule = (make(node) if (node := cfg.get(k)) else None for k in ("rollout", "block_schedule"))
    objects = {"masking": masking, "loss": objective.loss, "auxiliary": objective.auxiliary}
    schedules = Schedules(OmegaConf.to_container(cfg.schedule, resolve=True), objects) if cfg.get("schedule") else None
    trainable, data = make(cfg.trainable), make(cfg.data)
    asked_decoding(cfg)
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
    step_tokens = tokens_of_a_step(cfg)
    num_steps = math.ceil(cfg.tokens / step_tokens)
    parent = make(cfg.model)
    require_positions(parent.model, cfg.data.length, f"data.length {cfg.data.length}")
    for term in objective.auxiliary.values():
        term.bind(parent)
    if rollout:
        rollout.bind(parent)
    parent.model = trainable.apply(parent.model, parent.mask_id)
    data.prepare(parent.tokenizer, pattern.tail, num_steps * step_tokens // cfg.data.length, cfg.seed)
    denoiser = Denoiser(parent.model, pattern, parent.mask_id, cfg.token_shift, parent.layer_types)
    conversion = Conversion(denoiser, masking, objective, optimizer, cfg.seed, rollout, schedules, block_schedule)
    return Experiment(parent, denoiser, conversion, data, trainable, num_steps, step_tokens)


def make_masking(cfg: DictConfig) -> Masking:
    """The forward process of a config; those of runs from before there were others have the usual level and kernel."""
    parts = {key: make(cfg[key]) for key in ("noise_level", "kernel") if key in cfg}
    return make(cfg.masking, **parts)


def make_objective(cfg: DictConfig) -> Objective:
    """What a config minimises."""
    return Objective(make(cfg.loss), {name: make(node) for name, node in (cfg.get("auxiliary") or {}).items()})


def own_decoding(config: DictConfig) -> DictConfig:
    """How a run is decoded where nothing else is asked for: as its config says, else by the usual threshold."""
    return config.get("decoding") or OmegaConf.load(CONF / "decoding" / "threshold.yaml")


def asked_decoding(cfg: DictConfig, own: DictConfig | None = None) -> dict[str, Any] | None:
    """The resolved config of the decoder that a command asks for, None where it asks for none: `decoding=NAME` is a
    decoder, `+decoding.threshold=0.5` changes `own` (of a run; the usual one). `ValueError` where it cannot be made."""
    asked = cfg.get("decoding")
    if not asked:
        return None
    whole = asked if "_target_" in asked else OmegaConf.merge(own or own_decoding(OmegaConf.create()), asked)
    plain = OmegaConf.to_container(whole, resolve=True)
    make(plain)
    return plain


def tokens_of_a_step(cfg: DictConfig) -> int:
    """The tokens of one optimizer step; `ValueError` where the budget does not pay for one."""
    rows = cfg.data.batch_size * cfg.trainer.accumulate * num_processes(cfg)
    tokens = rows * cfg.data.length
    if cfg.tokens < tokens:
        raise ValueError(
            f"tokens {cfg.tokens} is less than one optimizer step of {tokens} tokens (data.batch_size x data.length x "
            "trainer.accumulate x devices x nodes): raise tokens or lower data.batch_size"
        )
    return tokens


def num_processes(cfg: DictConfig) -> int:
    """The number of processes that train a run together; 1 where a config of an earlier version does not say."""
    numbers = {name: cfg.trainer.get(name, 1) for name in ("devices", "num_nodes")}
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise ValueError(
                f"trainer.{name} {value!r} must be a whole number of at least 1: the size of a step, and with it the "
                "run, depends on it"
            )
    return math.prod(numbers.values())


def ar_denoiser(parent: Parent) -> Denoiser:
    """The parent as it was, in the common interface."""
    return Denoiser(parent.model, AR(), parent.mask_id, True, parent.layer_types)


def converted_denoiser(cfg: DictConfig, parent: Parent, model: PreTrainedModel | None = None) -> Denoiser:
    """A dLM by its config: `model` (default: the parent's) under the config's pattern and token shift."""
    pattern = make(cfg.attention)
    return Denoiser(model or parent.model, pattern, parent.mask_id, cfg.token_shift, parent.layer_types)


def choices() -> dict[str, str]:
    """Which option every config group has, for the record; empty outside a Hydra job."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return {}
    found = OmegaConf.to_container(HydraConfig.get().runtime.choices)
    return {group: name for group, name in found.items() if not group.startswith("hydra/")}
