"""Config → values: the options that build no object, as the frozen dataclasses of `dlm.config.settings`."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf

from dlm.config.build import make
from dlm.config.settings import Evaluation, Train

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class EvaluationSettings(Evaluation):
    """How a run is evaluated: the options, and the `families` of tasks that its data asks; None means those of short
    answers."""

    families: tuple[str, ...] | None = None

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings as a run's record has them: only those that are set, as JSON values."""
        unset = {field.name: field.default for field in fields(self)}
        given = {name: value for name, value in vars(self).items() if value != unset[name]}
        return given | ({"families": list(self.families)} if self.families is not None else {})


def evaluation_of(cfg: DictConfig | None, data: DictConfig) -> EvaluationSettings | None:
    """The settings of the evaluation that a config's group `evaluation` requests of a run on this `data`. None if it
    requests none: with `evaluation=none` (which sets `skip`) or `evaluation=null`, although a scale sets some values
    even then. Raises `ValueError` if a value is missing."""
    if not cfg or cfg.get("skip") or "batch_size" not in cfg or not cfg.tasks_per_family:
        return None
    return values_of(EvaluationSettings, plain(cfg) | {"families": make(data).asked}, "evaluation.")


def train_settings(cfg: DictConfig) -> Train:
    """The options of `dlm.train` by which a run trains. Raises `ValueError` if one is missing."""
    return values_of(Train, plain(cfg), "")


def plain(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)


def values_of(kind: type[Settings], given: dict[str, Any], prefix: str) -> Settings:
    """An instance of the dataclass `kind` with its fields among the `given` values; those that are dataclasses, too."""
    kinds, values = get_type_hints(kind), {}
    for field in fields(kind):
        name = field.name
        if name in given:
            nested = is_dataclass(kinds[name])
            values[name] = values_of(kinds[name], given[name], f"{prefix}{name}.") if nested else given[name]
        elif field.default is MISSING:
            raise ValueError(f"{prefix}{name} is missing: set {prefix}{name}=VALUE, or add it to the YAML of its group")
    return kind(**values)
