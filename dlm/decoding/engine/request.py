"""What is to be decoded, and how it is run: all that a decoder is told beside the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dlm.decoding.engine.lengths import room
from dlm.model.denoiser import Denoiser
from dlm.model.positions import require_positions

Stop = Callable[[list[int]], bool]
OnStep = Callable[..., None]


@dataclass(frozen=True)
class Request:
    """Prompts (token ids) to continue by `max_new_tokens`, up to `batch_size` side by side.

    `eos_ids` end a sequence (one token, several or None; kept as a tuple). `stop(tokens)` ends one early: it is asked
    at the end of each block, with the new tokens. `on_step(canvas)` is called after every forward. `generator` is what
    is sampled with. `compile` compiles a step, once for a shape: minutes for a large model; a step that samples or has
    a `stop` runs as it is. Raises `ValueError` for limits that leave nothing to decode.
    """

    prompts: list[list[int]]
    max_new_tokens: int
    eos_ids: int | Sequence[int] | None = None
    batch_size: int = 32
    generator: torch.Generator | None = None
    stop: Stop | None = None
    on_step: OnStep | None = None
    compile: bool = False

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} and batch_size {self.batch_size} must be at least 1"
            )
        ids = self.eos_ids
        several = () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
        object.__setattr__(self, "eos_ids", several)

    def check(self, denoiser: Denoiser, sliding: bool) -> None:
        """`ValueError` for a prompt that this model cannot continue, in blocks of the grid or `sliding` ones."""
        if denoiser.token_shift and not all(self.prompts):
            raise ValueError("an empty prompt cannot be continued with the token shift: begin it with a BOS token")
        for number, prompt in enumerate(self.prompts, 1):
            if denoiser.mask_id in prompt:
                raise ValueError(f"prompt {number} holds the mask token (id {denoiser.mask_id}): it stands for no text")
        longest = max(map(len, self.prompts), default=0)
        row = room(longest + self.max_new_tokens, denoiser.pattern.block_size, sliding) if self.prompts else 0
        limit = f"max_new_tokens {self.max_new_tokens}"
        what = f"a row of {row} tokens (a prompt of {longest}, {limit}, up to the end of a block)"
        require_positions(denoiser.model, row, what, "shorten the prompt or lower max_new_tokens")

    def by_length(self) -> list[int]:
        """The numbers of the prompts, the shortest first: similar lengths share a batch."""
        return sorted(range(len(self.prompts)), key=lambda n: len(self.prompts[n]))

    def called(self, canvas: object) -> None:
        """Tell whoever watches that a forward of this canvas is done."""
        if self.on_step is not None:
            self.on_step(canvas)
