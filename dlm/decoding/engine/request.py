"""The prompts to decode and the settings of the run: all that a decoder takes besides the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dlm.decoding.engine.lengths import room
from dlm.model.denoiser import Denoiser
from dlm.model.positions import require_positions
from dlm.model.vision import require_sight
from dlm.types import Images

Stop = Callable[[list[int]], bool]
OnStep = Callable[..., None]


@dataclass(frozen=True)
class Request:
    """Prompts (token ids) to continue by `max_new_tokens`, up to `batch_size` side by side.

    `eos_ids` end a sequence (one token, several or None; stored as a tuple). `stop(tokens)` ends one early: it is
    called with the new tokens at the end of each block. `on_step(canvas)` is called after every forward. `generator`
    draws the samples. `compile` compiles a step once per shape, which takes a minute; a step that samples or has a
    `stop` is not compiled. `replay` replays steps as a CUDA graph, whose recording empties the cache of the memory
    allocator. `images` are those that the tokens of each prompt stand for, None for a prompt of text; empty: no prompt
    has any. Raises `ValueError` if a limit is below 1 or `images` are not as many as the prompts.
    """

    prompts: list[list[int]]
    max_new_tokens: int
    eos_ids: int | Sequence[int] | None = None
    batch_size: int = 32
    generator: torch.Generator | None = None
    stop: Stop | None = None
    on_step: OnStep | None = None
    compile: bool = False
    replay: bool = True
    images: Sequence[Images | None] = ()

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} and batch_size {self.batch_size} must be at least 1"
            )
        if self.images and len(self.images) != len(self.prompts):
            raise ValueError(f"images for {len(self.images)} of {len(self.prompts)} prompts: give None for one of text")
        if not any(self.images):
            object.__setattr__(self, "images", ())
        ids = self.eos_ids
        several = () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
        object.__setattr__(self, "eos_ids", several)

    def check(self, denoiser: Denoiser, sliding: bool) -> None:
        """Raises `ValueError` for a prompt that this model cannot continue with blocks on the grid or `sliding` ones:
        an empty one with the token shift, one with a mask token, or one that exceeds the model's positions."""
        if denoiser.token_shift and not all(self.prompts):
            raise ValueError("an empty prompt cannot be continued with the token shift: begin it with a BOS token")
        for number, prompt in enumerate(self.prompts, 1):
            if denoiser.mask_id in prompt:
                raise ValueError(f"prompt {number} holds the mask token (id {denoiser.mask_id}): it stands for no text")
        if self.images:
            require_sight(denoiser.model.config)
        longest = max(map(len, self.prompts), default=0)
        slots = room(longest + self.max_new_tokens, denoiser.pattern, sliding) if self.prompts else 0
        limit = f"max_new_tokens {self.max_new_tokens}"
        what = f"a row of {slots} tokens (a prompt of {longest}, {limit}, up to the end of a block)"
        require_positions(denoiser.model, slots, what, "shorten the prompt or lower max_new_tokens")

    def by_length(self) -> list[int]:
        """The numbers of the prompts, the shortest first: similar lengths share a batch."""
        return sorted(range(len(self.prompts)), key=lambda n: len(self.prompts[n]))

    def report(self, canvas: object) -> None:
        """Call `on_step`, if there is one, after a forward of this canvas."""
        if self.on_step is not None:
            self.on_step(canvas)
