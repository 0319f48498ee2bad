"""Prompts → tokens, block by block, with an exact key-value cache and ragged batches.

One forward of a sequence reads [pending ; current]: `pending` are finished tokens whose keys and values are not yet in
the cache (the prompt at first, later the block that was just finished), `current` is the block being denoised. So the
prompt and every finished block are written by a forward that denoises as well, and n denoising steps cost n forwards.
Patterns that cannot cache read the whole canvas in every forward instead. AR is the case of blocks of one token that
are scored by the last pending token alone, so nothing is left to read as `current`.

Which row sees which slot is the pattern's own predicate, applied to the slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.cache import SlotCache
from dlm.denoiser import Denoiser
from dlm.types import Rows


@dataclass(frozen=True)
class Generation:
    """What one prompt gave: new tokens (up to and including EOS), the forwards they took, and for each token the
    forward (from 1) that committed it and its confidence."""

    tokens: list[int]
    nfe: int
    step: list[int]
    confidence: list[float]

    @property
    def tpf(self) -> float:
        """Tokens generated per forward, every forward counted."""
        return len(self.tokens) / self.nfe


Stop = Callable[[list[int]], bool]
OnStep = Callable[["Canvas"], None]


class Canvas:
    """The state of a batch while it is decoded. Slots are absolute positions; the last slot is scratch for the rows of
    sequences that have nothing to write."""

    def __init__(self, denoiser: Denoiser, prompts: list[list[int]], max_new_tokens: int):
        pattern, device = denoiser.pattern, denoiser.model.device
        self.block_size, self.max_new_tokens, self.mask_id = pattern.block_size, max_new_tokens, denoiser.mask_id
        self.prompt_length = torch.tensor([len(p) for p in prompts], device=device)
        ends = self.prompt_length + max_new_tokens
        self.length = -(-ends // self.block_size) * self.block_size  # whole blocks, as in training
        self.num_slots = int(self.length.max()) + 1
        shape = (len(prompts), self.num_slots)
        self.x = torch.full(shape, self.mask_id, device=device)
        for row, prompt in zip(self.x, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt, device=device)
        slots = torch.arange(self.num_slots, device=device)
        self.masked = slots >= self.prompt_length[:, None]
        self.start = self.prompt_length // self.block_size * self.block_size
        self.written = torch.zeros_like(self.start)
        self.nfe = torch.zeros_like(self.start)
        self.step = torch.zeros(shape, dtype=torch.long, device=device)
        self.confidence = torch.zeros(shape, device=device)
        self.finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        self.carry: Float[Tensor, "N V"] | None = None

    def block_slots(self) -> Int[Tensor, "N K"]:
        return self.start[:, None] + torch.arange(self.block_size, device=self.x.device)

    def filled(self) -> Int[Tensor, " N"]:
        """How many slots from the left hold committed tokens."""
        return self.masked.int().argmax(1)


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    prompts: list[list[int]],
    decoder: Decoder,
    max_new_tokens: int,
    eos_id: int | list[int] | None,
    batch_size: int = 32,
    generator: torch.Generator | None = None,
    stop: Stop | None = None,
    on_step: OnStep | None = None,
) -> list[Generation]:
    """Decode every prompt (token ids), in order. `stop(tokens)` ends a sequence early, asked at the end of each block;
    `on_step(canvas)` is called after every forward. Raises `ValueError` for a prompt that cannot be continued."""
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} and batch_size {batch_size} must be at least 1")
    if denoiser.token_shift and not all(prompts):
        raise ValueError("an empty prompt cannot be continued with the token shift: begin it with a BOS token")
    eos_ids = torch.tensor([] if eos_id is None else eos_id, dtype=torch.long, device=denoiser.model.device).flatten()
    training = denoiser.training
    denoiser.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths share a batch
    done: dict[int, Generation] = {}
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        canvas = Canvas(denoiser, [prompts[i] for i in chosen], max_new_tokens)
        decode_batch(denoiser, canvas, decoder, eos_ids, generator, stop, on_step)
        done |= dict(zip(chosen, results(canvas, eos_ids), strict=True))
    denoiser.train(training)
    return [done[i] for i in range(len(prompts))]


def decode_batch(denoiser, canvas: Canvas, decoder: Decoder, eos_ids, generator, stop, on_step) -> None:
    """Denoise until every sequence of the canvas is finished."""
    config = denoiser.model.config.get_text_config()
    cache = SlotCache(config.num_hidden_layers, canvas.num_slots)
    while not bool(canvas.finished.all()):
        logits = forward(denoiser, canvas, cache)
        canvas.nfe += ~canvas.finished
        commit(canvas, decoder, logits, denoiser.token_shift, eos_ids, generator)
        advance(denoiser, canvas, eos_ids, stop)
        if on_step is not None:
            on_step(canvas)


def forward(denoiser: Denoiser, canvas: Canvas, cache: SlotCache) -> Float[Tensor, "N K V"]:
    """The logits of every position of each sequence's current block."""
    pattern, scratch = denoiser.pattern, canvas.num_slots - 1
    slots, current = rows_to_read(denoiser, canvas)
    is_scratch = slots == scratch
    cache.slots = slots
    start = canvas.start[:, None]
    clean = torch.full_like(slots, not pattern.noisy_stream, dtype=torch.bool)
    if pattern.clean_stream and pattern.noisy_stream:
        clean = (slots < start) & ~is_scratch
    q = Rows(clean, torch.where(is_scratch, -1, 0), slots)
    k = columns(denoiser, canvas)
    scored, from_pending = rows_to_score(denoiser, canvas, slots, current)
    logits = denoiser.score(
        scored.flatten(),
        canvas.x.gather(1, slots),
        slots,
        denoiser.masks(q, k),
        past_key_values=cache,
        use_cache=True,
    ).view(*scored.shape, -1)
    if denoiser.token_shift:  # the first token of a block is scored once, when the token before it is written
        fresh = from_pending[:, None]
        canvas.carry = logits[:, 0] if canvas.carry is None else torch.where(fresh, logits[:, 0], canvas.carry)
        logits = torch.cat([canvas.carry[:, None], logits[:, 1:]], 1)
    canvas.written = canvas.start.clone() if pattern.cacheable else canvas.written
    return logits


def rows_to_read(denoiser: Denoiser, canvas: Canvas) -> tuple[Int[Tensor, "N R"], int]:
    """The slots of a forward's rows, [pending ; current] padded with the scratch slot, and where `current` begins."""
    pattern, scratch, device = denoiser.pattern, canvas.num_slots - 1, canvas.x.device
    live = ~canvas.finished
    pending = torch.where(live, canvas.start - canvas.written, 0)
    width = int(pending.max())
    slots = canvas.written[:, None] + torch.arange(width, device=device)
    slots = torch.where(torch.arange(width, device=device) < pending[:, None], slots, scratch)
    if not pattern.noisy_stream:
        return slots, width
    size = canvas.block_size if pattern.cacheable else int((canvas.length - canvas.start).max())
    current = canvas.start[:, None] + torch.arange(size, device=device)
    current = torch.where(live[:, None] & (current < canvas.length[:, None]), current, scratch)
    return torch.cat([slots, current], 1), width


def columns(denoiser: Denoiser, canvas: Canvas) -> Rows:
    """The slots as columns of the attention matrix: those that hold something belong to document 0."""
    pattern = denoiser.pattern
    slots = torch.arange(canvas.num_slots, device=canvas.x.device).expand_as(canvas.x)
    end = canvas.start + canvas.block_size * pattern.noisy_stream if pattern.cacheable else canvas.length
    used = slots < end[:, None]
    clean = torch.full_like(used, not pattern.noisy_stream)
    if pattern.clean_stream and pattern.noisy_stream:
        clean = slots < canvas.start[:, None]
    return Rows(clean, torch.where(used, 0, -1), slots)


def rows_to_score(
    denoiser: Denoiser, canvas: Canvas, slots: Int[Tensor, "N R"], current: int
) -> tuple[Int[Tensor, "N K"], Bool[Tensor, " N"]]:
    """The flat index of the row that scores each position of the current block, and whether the block's first one is
    scored by a row of this forward."""
    batch, width = slots.shape
    device = slots.device
    column = current + torch.arange(canvas.block_size, device=device).expand(batch, -1)
    from_pending = torch.zeros(batch, dtype=torch.bool, device=device)
    if denoiser.token_shift:
        before = slots == canvas.start[:, None] - 1
        from_pending = before.any(1)
        column = torch.cat([before.int().argmax(1, keepdim=True), column[:, 1:] - 1], 1)
    return column + torch.arange(batch, device=device)[:, None] * width, from_pending


def commit(canvas: Canvas, decoder: Decoder, logits, token_shift: bool, eos_ids, generator) -> None:
    """Write the tokens that the decoder keeps, at least one per sequence.

    Training documents end in EOS up to the end of their block, so the tail of a block is easily predicted. It must not
    use up steps: an EOS ranks behind every other token, the leftmost first, and fills what is to its right.
    """
    slots = canvas.block_slots()
    offset = torch.arange(canvas.block_size, device=slots.device)
    open_ = canvas.masked.gather(1, slots) & ~canvas.finished[:, None]
    token, confidence = decoder.sample(logits, generator)
    is_eos = torch.isin(token, eos_ids)
    rank = torch.where(is_eos, -1 - offset / canvas.block_size, confidence).masked_fill(~open_, -torch.inf)
    best = torch.zeros_like(open_).scatter(1, rank.argmax(1, keepdim=True), True)
    keep = (decoder.select(confidence.masked_fill(~open_, -1.0), rank) | best) & open_
    if token_shift:
        # A first token that is alone has its final score already: it was fixed by the clean context.
        keep[:, 0] |= open_[:, 0] & ~(open_[:, 1:] & ~keep[:, 1:]).any(1)
    tail = ((keep & is_eos).cumsum(1) > 0) & open_ & ~keep
    token = torch.where(tail, eos_ids[0] if len(eos_ids) else canvas.mask_id, token)
    for state, value in (
        (canvas.x, token),
        (canvas.masked, torch.zeros_like(keep)),
        (canvas.step, canvas.nfe[:, None].expand_as(slots)),
        (canvas.confidence, confidence),
    ):
        state.scatter_(1, slots, torch.where(keep | tail, value, state.gather(1, slots)))


def advance(denoiser: Denoiser, canvas: Canvas, eos_ids: Int[Tensor, " E"], stop: Stop | None) -> None:
    """Finish the sequences that have reached EOS, a stop or their length; move the others on at the end of a block."""
    filled = canvas.filled()
    slots = torch.arange(canvas.num_slots, device=canvas.x.device)
    new = (slots >= canvas.prompt_length[:, None]) & (slots < filled[:, None])
    ended = (torch.isin(canvas.x, eos_ids) & new).any(1)
    ended |= filled >= canvas.prompt_length + canvas.max_new_tokens
    block_done = filled >= canvas.start + canvas.block_size
    if stop is not None:
        for n in (block_done & ~ended & ~canvas.finished).nonzero()[:, 0].tolist():
            ended[n] |= stop(canvas.x[n, canvas.prompt_length[n] : filled[n]].tolist())
    canvas.finished |= ended
    canvas.start = torch.where(block_done & ~canvas.finished, canvas.start + canvas.block_size, canvas.start)


def results(canvas: Canvas, eos_ids: Int[Tensor, " E"]) -> Iterator[Generation]:
    """Cut every sequence at its EOS or its length."""
    eos = set(eos_ids.tolist())
    filled = canvas.filled()
    for n, prompt_length in enumerate(canvas.prompt_length.tolist()):
        end = min(int(filled[n]), prompt_length + canvas.max_new_tokens)
        tokens = canvas.x[n, prompt_length:end].tolist()
        cut = next((i + 1 for i, token in enumerate(tokens) if token in eos), len(tokens))
        span = slice(prompt_length, prompt_length + cut)
        yield Generation(
            tokens[:cut], int(canvas.nfe[n]), canvas.step[n, span].tolist(), canvas.confidence[n, span].tolist()
        )
