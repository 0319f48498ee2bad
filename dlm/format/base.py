"""The interface of the layouts in which a finished run leaves this project."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from transformers import PreTrainedModel

from dlm.attention.base import AttentionPattern


@dataclass(frozen=True)
class Converted:
    """A converted model that is to be exported: the folder of its weights and tokenizer, the model without weights (on
    the meta device), its attention pattern, and the settings of its decoding as they stand in an exported config.json.
    `trains_ar` says whether the AR loss was trained as well."""

    weights: Path
    model: PreTrainedModel
    pattern: AttentionPattern
    settings: dict[str, Any]
    trains_ar: bool

    @property
    def block_size(self) -> int:
        return self.pattern.block_size

    @property
    def mask_id(self) -> int:
        return self.settings["mask_token_id"]


class Format(ABC):
    """A layout of a folder, which some program loads. An option of `format` is a subclass."""

    @abstractmethod
    def refusals(self, made: Converted) -> Iterator[str]:
        """The reasons why that program would not decode this model as it was trained: clauses, each with its
        remedy."""

    @abstractmethod
    def write(self, made: Converted, folder: Path) -> None:
        """Write weights, tokenizer, configs and code to a folder that does not exist."""

    @abstractmethod
    def verify(self, folder: Path) -> None:
        """Raises `ValueError` if a written folder is not what the program loads."""

    @abstractmethod
    def usage(self, made: Converted, name: str) -> str:
        """How to use a folder of this name: Markdown, for its model card."""

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @final
    def require(self, made: Converted) -> None:
        """Raises `ValueError` with all reasons why this format cannot hold the model."""
        if reasons := list(self.refusals(made)):
            raise ValueError(f"format={self.name} cannot hold this model: {'; '.join(reasons)}")
