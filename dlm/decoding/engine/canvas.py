"""The state of the sequences that are being decoded: tensors on the model's device, one row per sequence.

Rows are independent of one another: they may be in different blocks, they leave when they are finished, and new ones
join. A slot is an absolute position; slot -1 is scratch, for rows of a forward that have nothing to read or write.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm.decoding.engine.cache import SlotCache
from dlm.decoding.engine.lengths import room
from dlm.decoding.engine.request import Request
from dlm.model.denoiser import Denoiser

SCRATCH = -1


@dataclass(frozen=True)
class Generation:
    """What one prompt gave: new tokens (up to and including EOS), the forwards they took, the rows (tokens and masks,
    no padding) that the network read for it in all of them, and for each token the forward (from 1) that committed it
    and its confidence."""

    tokens: list[int]
    nfe: int
    rows: int
    step: list[int]
    confidence: list[float]

    @property
    def tpf(self) -> float:
        """Tokens generated per forward, every forward counted."""
        return len(self.tokens) / self.nfe


class Canvas:
    """The prompts of a request that `index` numbers, with room for its new tokens, up to the end of a block.
    `num_slots` is the length of the longest canvas that these may have to share a batch with. With `fixed_shapes` no
    shape depends on what the sequences hold. With `sliding` the current block begins at the first masked slot, else on
    the grid of blocks: at a multiple of `grid`.

    `token` and `certainty` are the last prediction of every position of the current block, and `asked` says which of
    them the last forward made. `tail_id` is the token behind an EOS. `live` are the rows whose result is not yet taken,
    and `placement` is another object whenever tensors have moved.
    """

    # What a sequence has a row of.
    STATE = ("x", "masked", "step", "confidence", "index", "prompt_length", "length", "start", "written", "nfe", "rows")
    STATE += ("finished", "token", "certainty", "asked")

    def __init__(
        self,
        denoiser: Denoiser,
        request: Request,
        index: list[int],
        num_slots: int,
        fixed_shapes: bool = False,
        sliding: bool = False,
    ):
        prompts, device = [request.prompts[n] for n in index], denoiser.model.device
        self.block_size, self.num_slots = denoiser.pattern.block_size, num_slots
        self.max_new_tokens, self.mask_id = request.max_new_tokens, denoiser.mask_id
        self.eos_ids = torch.tensor(request.eos_ids, dtype=torch.long, device=device)
        self.tail_id = request.eos_ids[0] if request.eos_ids else denoiser.mask_id
        self.fixed_shapes, self.sliding = fixed_shapes, sliding
        self.grid = 1 if sliding else self.block_size
        self.live, self.placement = list(range(len(prompts))), object()
        self.cache = SlotCache(denoiser.model.config.get_text_config().num_hidden_layers, num_slots)
        lengths = [len(p) for p in prompts]
        # The host knows how many tokens are read first; after that at most a block is pending.
        self.max_pending = max(n // self.grid * self.grid for n in lengths)
        shape = (len(prompts), num_slots + 1)  # the last one is always masked: a sentinel
        self.x = torch.full(shape, self.mask_id)
        for row, prompt in zip(self.x, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        self.x = self.x.to(device)
        self.index, self.prompt_length = torch.tensor(index, device=device), torch.tensor(lengths, device=device)
        self.length = room(self.prompt_length + self.max_new_tokens, self.block_size, sliding)
        self.masked = torch.arange(num_slots + 1, device=device) >= self.prompt_length[:, None]
        self.start = self.prompt_length // self.grid * self.grid
        self.written = torch.zeros_like(self.start)
        self.nfe, self.rows = torch.zeros_like(self.start), torch.zeros_like(self.start)
        self.step = torch.zeros(shape, dtype=torch.long, device=device)
        self.confidence = torch.zeros(shape, device=device)
        self.finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        self.token = torch.zeros(len(prompts), self.block_size, dtype=torch.long, device=device)
        self.certainty = torch.zeros(len(prompts), self.block_size, device=device)
        self.asked = torch.zeros(len(prompts), self.block_size, dtype=torch.bool, device=device)

    def __len__(self) -> int:
        return len(self.x)

    def block_slots(self) -> Int[Tensor, "N K"]:
        """The slots of each sequence's current block."""
        return self.start[:, None] + torch.arange(self.block_size, device=self.x.device)

    def open(self) -> Bool[Tensor, "N K"]:
        """The positions of each sequence's current block that are still masked; none of a finished one."""
        return self.masked.gather(1, self.block_slots()) & ~self.finished[:, None]

    def committed(self) -> Bool[Tensor, "N K"]:
        """The positions of each sequence's current block that hold new tokens; none of a finished one."""
        slots = self.block_slots()
        new = ~self.masked.gather(1, slots) & (slots >= self.prompt_length[:, None])
        return new & ~self.finished[:, None]

    def filled(self) -> Int[Tensor, " N"]:
        """How many slots from the left hold committed tokens."""
        return self.masked.int().argmax(1)

    def is_eos(self, token: Int[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return torch.isin(token, self.eos_ids)

    def harvest(self, places_are_wanted: bool = False) -> dict[int, Generation]:
        """What the sequences that have finished since the last time gave, by their number. Their rows go, unless
        `places_are_wanted` for others: at once where rows cost time, else when half of them are idle."""
        finished = self.finished.tolist()
        over = [n for n in self.live if finished[n]]
        self.live = [n for n in self.live if not finished[n]]
        made = self.results(over)
        most = len(self) // 2 if self.fixed_shapes else len(self)
        if over and not places_are_wanted and 0 < len(self.live) <= most:
            self.keep(torch.tensor(self.live, device=self.x.device))
            self.live = list(range(len(self)))
        return made

    def keep(self, rows: Int[Tensor, " M"]) -> None:
        """Only these sequences stay."""
        for name in self.STATE:
            setattr(self, name, getattr(self, name)[rows])
        self.cache.keep(rows)
        self.placement = object()

    def join(self, other: Canvas) -> Canvas:
        """The sequences of another canvas, after its first forward, go on in this one: in the places of finished ones
        if there are enough, so that nothing moves."""
        idle = sorted(set(range(len(self))) - set(self.live))[: len(other)]
        if len(idle) == len(other):
            places = torch.tensor(idle, device=self.x.device)
            for name in self.STATE:
                getattr(self, name)[places] = getattr(other, name)
            self.cache.replace(places, other.cache)
            self.live += idle
            return self
        self.live += range(len(self), len(self) + len(other))
        for name in self.STATE:
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        self.cache.join(other.cache)
        self.placement = object()
        return self

    def results(self, rows: list[int]) -> dict[int, Generation]:
        """What these sequences gave, by their number, cut at EOS or at their length."""
        eos, filled, made = set(self.eos_ids.tolist()), self.filled(), {}
        for n in rows:
            begin = int(self.prompt_length[n])
            tokens = self.x[n, begin : min(int(filled[n]), begin + self.max_new_tokens)].tolist()
            cut = next((i + 1 for i, token in enumerate(tokens) if token in eos), len(tokens))
            span = slice(begin, begin + cut)
            step, confidence = self.step[n, span].tolist(), self.confidence[n, span].tolist()
            nfe, rows = int(self.nfe[n]), int(self.rows[n])
            made[int(self.index[n])] = Generation(tokens[:cut], nfe, rows, step, confidence)
        return made
