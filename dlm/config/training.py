"""All that training a run takes of its config, as settings and objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lightning import Callback
from omegaconf import DictConfig

from dlm.config.build import Experiment, build, make, make_callbacks, requested_decoding
from dlm.config.settings import Train
from dlm.config.values import EvaluationSettings, evaluation_of, train_settings
from dlm.decoding.base import Decoder


@dataclass(frozen=True)
class Training:
    """How a run trains, the evaluation that follows (None if none is requested) with the decoder that it adds, and the
    callbacks. `build(for_shards=…)` makes the experiment, which loads the parent and may draw its new weights."""

    settings: Train
    evaluation: EvaluationSettings | None
    decoder: Decoder | None
    callbacks: list[Callback]
    build: Callable[..., Experiment]

    @classmethod
    def of(cls, cfg: DictConfig) -> Training:
        """That of a config of `dlm.train`. Raises `ValueError` for a bad one."""
        decoding = requested_decoding(cfg)
        return cls(
            settings=train_settings(cfg),
            evaluation=evaluation_of(cfg.get("evaluation"), cfg.data),
            decoder=make(decoding) if decoding else None,
            callbacks=make_callbacks(cfg.get("callbacks")),
            build=partial(build, cfg),
        )
