"""The state of the sequences that are being decoded: tensors on the model's device.

    B sequences        K positions of a block        slots: absolute positions of a sequence

Sequences are independent: they may be in different blocks, they leave when they are finished, and others join. Slot -1
is scratch, for positions of a forward that have nothing to read or write.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.engine.cache import SlotCache
from dlm.decoding.engine.lengths import whole_blocks
from dlm.decoding.engine.pictures import Pictures
from dlm.decoding.engine.request import Request
from dlm.model.denoiser import Denoiser

SCRATCH = -1


@dataclass(frozen=True)
class Generation:
    """The answer to one prompt. `tokens` are the new ones, up to and including EOS; `nfe` counts the forwards that they
    took, and `rows` the positions (tokens and masks, no padding) that the network read in all of them. For each token,
    `step` is the forward (from 1) that committed it and `confidence` its confidence, in [0, 1]."""

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
    """The prompts of a request with the numbers `index`, and room for their new tokens up to the end of a block.
    `num_slots` is the length of the longest sequence of the batch. With `fixed_shapes` no shape depends on the contents
    of the sequences. With `sliding` the current block begins at the first masked slot, else on the pattern's grid of
    blocks: at a multiple of `grid`, less `to_grid`.

    Per slot [B num_slots+1] (the last one is always masked: a sentinel)
        x, masked            the tokens, and which of them are masked
        step, confidence     the forward that committed a token, and its confidence
    Per sequence [B]
        index                the number of its prompt
        prompt_length        its prompt tokens
        limit                the most new tokens that it may have; `max_new_tokens` is the largest of these
        to_grid              how far its positions are moved so that blocks begin at multiples of their size
        length               its slots, up to the end of a block
        start                the first slot of its current block
        written              its slots whose keys and values are in the cache
        nfe, rows            its forwards, and the positions that they read
        finished             whether it has reached EOS, a stop or its length
    Per position of the current block [B K]
        token, certainty     its last prediction, and the confidence of that
        predicted            whether the last forward made that prediction

    `tail_id` is the token that follows an EOS. `live` numbers the sequences that have not been harvested. `placement`
    is replaced by another object whenever tensors move. `pictures` is what the network reads of images; None: no prompt
    of the request has any.
    """

    # The tensors with one row per sequence.
    STATE = ("x", "masked", "step", "confidence", "index", "prompt_length", "length", "start", "written", "nfe", "rows")
    STATE += ("finished", "token", "certainty", "predicted", "limit", "to_grid")

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
        self.ends = request.eos_ids  # as the host knows them
        self.eos_ids = torch.tensor(self.ends, dtype=torch.long, device=device)
        self.tail_id = request.eos_ids[0] if request.eos_ids else denoiser.mask_id
        self.fixed_shapes, self.sliding = fixed_shapes, sliding
        self.grid = 1 if sliding else self.block_size
        self.live, self.placement = list(range(len(prompts))), object()
        self.cache = SlotCache(denoiser.model.config.get_text_config().num_hidden_layers, num_slots)
        lengths = [len(p) for p in prompts]
        # The host knows how many tokens the first forward reads; after that at most a block is pending.
        to_grid = [denoiser.pattern.to_grid(n) for n in lengths]
        self.max_pending = max((n + d) // self.grid * self.grid - d for n, d in zip(lengths, to_grid, strict=True))
        self.x = torch.full((len(prompts), num_slots + 1), self.mask_id)
        for row, prompt in zip(self.x, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        self.x = self.x.to(device)
        self.index, self.prompt_length = torch.tensor(index, device=device), torch.tensor(lengths, device=device)
        self.limit = torch.full_like(self.prompt_length, request.max_new_tokens)
        self.to_grid = torch.tensor(to_grid, device=device)
        tokens = self.prompt_length + self.max_new_tokens
        self.length = tokens + self.block_size - 1 if sliding else self.block_end(tokens)
        self.masked = torch.arange(num_slots + 1, device=device) >= self.prompt_length[:, None]
        self.start = self.block_begin(self.prompt_length)
        self.init_progress()
        self.pictures = Pictures.of(denoiser, request, index, self.start, self.x) if request.images else None

    def init_progress(self) -> None:
        """Before the first forward nothing is cached, counted, committed or predicted."""
        sequences, slots, block = len(self.x), self.x.shape[1], self.block_size
        device = self.x.device
        self.written = torch.zeros_like(self.start)
        self.nfe, self.rows = torch.zeros_like(self.start), torch.zeros_like(self.start)
        self.step = torch.zeros(sequences, slots, dtype=torch.long, device=device)
        self.confidence = torch.zeros(sequences, slots, device=device)
        self.finished = torch.zeros(sequences, dtype=torch.bool, device=device)
        self.token = torch.zeros(sequences, block, dtype=torch.long, device=device)
        self.certainty = torch.zeros(sequences, block, device=device)
        self.predicted = torch.zeros(sequences, block, dtype=torch.bool, device=device)

    def __len__(self) -> int:
        return len(self.x)

    def block_begin(self, slot: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The first slot of the block that holds a slot of each sequence."""
        return (slot + self.to_grid) // self.grid * self.grid - self.to_grid

    def block_end(self, length: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The length of each sequence up to the end of a block."""
        return whole_blocks(length + self.to_grid, self.block_size) - self.to_grid

    def block_slots(self) -> Int[Tensor, "B K"]:
        """The slots of each sequence's current block."""
        return self.start[:, None] + torch.arange(self.block_size, device=self.x.device)

    def open(self) -> Bool[Tensor, "B K"]:
        """Which positions of each current block are still masked; none of a finished sequence."""
        return self.masked.gather(1, self.block_slots()) & ~self.finished[:, None]

    def spans(self, slots: Int[Tensor, "B S"]) -> Int[Tensor, "B S"] | None:
        """The spans of slots (see `Rows`), None if there are none."""
        span = None if self.pictures is None else self.pictures.span
        return None if span is None else span.gather(1, slots.clamp(0, span.shape[1] - 1))

    @property
    def rereads_images(self) -> bool:
        """Whether the next forward may read tokens of images."""
        return self.pictures is not None and self.pictures.rereads

    def shows_images(self, row: int) -> bool:
        """Whether the prompt of a sequence has images."""
        return self.pictures is not None and bool(self.pictures.context.given[row].any())

    def committed(self) -> Bool[Tensor, "B K"]:
        """Which positions of each current block hold new tokens; none of a finished sequence."""
        slots = self.block_slots()
        new = ~self.masked.gather(1, slots) & (slots >= self.prompt_length[:, None])
        return new & ~self.finished[:, None]

    def last_predictions(
        self, row: int, start: int
    ) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"], Float[Tensor, " P"], Bool[Tensor, " P"]]:
        """Of the block of one sequence that began at slot `start` as the last forward was made: its slots, the last
        prediction of each, the confidence of that, and whether the forward made it."""
        slots = torch.arange(start, start + self.block_size, device=self.x.device)
        return slots, self.token[row], self.certainty[row], self.predicted[row]

    def filled(self) -> Int[Tensor, " B"]:
        """The number of slots before the first masked one."""
        return self.masked.int().argmax(1)

    def make_room_for_pending(self, ask: bool) -> None:
        """Set the rows that the next forward reads for pending tokens, after the first: those of a block. With `ask`,
        none where no sequence has any, for which the host waits. A replayed step runs no code that could set it."""
        has_pending = not ask or bool(((self.start > self.written) & ~self.finished).any())
        self.max_pending = self.block_size if has_pending else 0

    def is_eos(self, token: Int[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return (token[..., None] == self.eos_ids).any(-1)  # `isin` of many ids waits for the device

    def harvest(self, keep_places: bool = False) -> dict[int, Generation]:
        """The generations of the sequences that have finished since the last call, by the number of their prompt.
        Unless others need their places (`keep_places`), the sequences are removed: at once with free shapes, where idle
        ones cost time, else when half of the batch is idle, down to a power of two: few sizes are compiled."""
        finished = self.finished.tolist()
        newly_finished = [n for n in self.live if finished[n]]
        self.live = [n for n in self.live if not finished[n]]
        generations = self.results(newly_finished)
        places = 1 << (len(self.live) - 1).bit_length() if self.fixed_shapes else len(self.live)
        if newly_finished and not keep_places and self.live and places < len(self):
            idle = [n for n in range(len(self)) if n not in self.live]
            kept = (self.live + idle)[:places]
            self.keep(torch.tensor(kept, device=self.x.device))
            self.live = list(range(len(self.live)))
        return generations

    def keep(self, sequences: Int[Tensor, " M"]) -> None:
        """Remove all sequences but these."""
        for name in self.STATE:
            setattr(self, name, getattr(self, name)[sequences])
        self.cache.keep(sequences)
        if self.pictures is not None:
            self.pictures.keep(sequences)
        self.placement = object()

    def widen(self, num_slots: int) -> None:
        """Make room for as many slots, at least those that there are."""
        if more := num_slots - self.num_slots:
            for name, value in (("x", self.mask_id), ("masked", True), ("step", 0), ("confidence", 0.0)):
                setattr(self, name, torch.nn.functional.pad(getattr(self, name), (0, more), value=value))
            self.cache.widen(num_slots)
            if self.pictures is not None:
                self.pictures.widen(more)
            self.num_slots, self.placement = num_slots, object()

    def is_like(self, other: Canvas) -> bool:
        """Whether the sequences of another canvas can join this one: both have the same EOS ids."""
        return self.ends == other.ends

    def join(self, other: Canvas) -> Canvas:
        """Add the sequences of another canvas to this one; both are before or both after their first forward. They take
        the places of finished ones if there are enough, so that nothing moves. Both get the slots of the longer one."""
        self.max_pending = max(self.max_pending, other.max_pending)
        self.max_new_tokens = max(self.max_new_tokens, other.max_new_tokens)
        for canvas in (self, other):
            canvas.widen(max(self.num_slots, other.num_slots))
        if self.pictures is None and other.pictures is not None:
            self.pictures, self.placement = other.pictures.blank(len(self)), object()
        elif other.pictures is None and self.pictures is not None:
            other.pictures = self.pictures.blank(len(other))
        idle = sorted(set(range(len(self))) - set(self.live))[: len(other)]
        if len(idle) == len(other):
            places = torch.tensor(idle, device=self.x.device)
            for name in self.STATE:
                getattr(self, name)[places] = getattr(other, name)
            self.cache.replace(places, other.cache)
            if self.pictures is not None and self.pictures.overwrite(places, other.pictures):
                self.placement = object()
            self.live += idle
            return self
        self.live += range(len(self), len(self) + len(other))
        for name in self.STATE:
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        self.cache.join(other.cache)
        if self.pictures is not None:
            self.pictures.join(other.pictures)
        self.placement = object()
        return self

    def results(self, sequences: list[int]) -> dict[int, Generation]:
        """The generations of these sequences, cut at EOS or `max_new_tokens`, by the number of their prompt."""
        eos, filled, generations = set(self.ends), self.filled(), {}
        for n in sequences:
            begin = int(self.prompt_length[n])
            tokens = self.x[n, begin : min(int(filled[n]), begin + int(self.limit[n]))].tolist()
            cut = next((i + 1 for i, token in enumerate(tokens) if token in eos), len(tokens))
            span = slice(begin, begin + cut)
            step, confidence = self.step[n, span].tolist(), self.confidence[n, span].tolist()
            nfe, rows = int(self.nfe[n]), int(self.rows[n])
            generations[int(self.index[n])] = Generation(tokens[:cut], nfe, rows, step, confidence)
        return generations
