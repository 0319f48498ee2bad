"""Prompts → tokens, block by block, with an exact key-value cache and ragged batches.

One forward of a sequence reads [pending ; current]: `pending` are finished tokens whose keys and values are not yet in
the cache (the prompt at first, later the block that was just finished), `current` is the block being denoised. So the
prompt and every finished block are written by a forward that denoises as well, and n denoising steps cost n forwards.
Patterns that cannot cache read the whole canvas in every forward instead. AR is the case of blocks of one token that
are scored by the last pending token alone, so nothing is left to read as `current`.

Sequences are independent: a finished one leaves the batch, and waiting prompts take its place. On a CPU a step reads
only what there is to read. On a GPU its shapes are fixed, a finished sequence keeps its place until another takes it,
the step is replayed as a CUDA graph, and the host waits for the device only to ask what is finished.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.canvas import Canvas, Generation, room, whole_blocks
from dlm.decoding.graph import Replay, compiled
from dlm.decoding.step import Stop, step
from dlm.model.denoiser import Denoiser
from dlm.model.positions import require_positions

OnStep = Callable[[Canvas], None]
Begin = Callable[[Canvas, Tensor], Callable[[], None]]

# Prompts join a batch when this fraction of it is free: each joining costs a forward of its own.
JOIN_AT = 0.25
POLL = 4  # forwards between two looks at what is finished on a device; on the host, looking costs nothing
BUCKET = 256  # fixed shapes have a multiple of so many slots, so that few are compiled


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
    compile: bool = False,
) -> list[Generation]:
    """Decode every prompt (token ids), in order, up to `batch_size` side by side. `stop(tokens)` ends a sequence early,
    asked at the end of each block; `on_step(canvas)` is called after every forward. `compile` compiles a step, once for
    a shape: minutes for a large model; a step that samples or has a `stop` runs as it is. Raises `ValueError` for a
    prompt that cannot be continued."""
    eos_ids = checked(denoiser, prompts, max_new_tokens, eos_id, batch_size, decoder.sliding)
    device, size = denoiser.model.device, denoiser.pattern.block_size
    fixed_shapes = compile or device.type != "cpu"
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths share a batch
    num_slots = max((room(len(p) + max_new_tokens, size, decoder.sliding) for p in prompts), default=0)
    if fixed_shapes:
        num_slots = whole_blocks(num_slots, BUCKET)
    training = denoiser.training
    denoiser.eval()
    done: dict[int, Generation] = {}
    canvas: Canvas | None = None
    rest = {"decoder": decoder, "eos_ids": eos_ids, "generator": generator, "stop": stop}
    first = partial(step, denoiser, **rest)
    one_step = compiled(step) if compile and is_closed(decoder, stop) else step
    advance = Replay(partial(one_step, denoiser, **rest), replays(device, decoder, stop))
    while waiting or canvas is not None:
        free = batch_size - (0 if canvas is None else len(canvas.live))
        if waiting and free >= (batch_size * JOIN_AT if canvas is not None else 1):
            chosen, waiting = waiting[:free], waiting[free:]
            share = [prompts[i] for i in chosen]
            new = Canvas(denoiser, share, chosen, max_new_tokens, num_slots, fixed_shapes, decoder.sliding)
            forwards(first, new, 1, on_step)
            canvas = new if canvas is None else canvas.join(new)
        else:
            forwards(advance, canvas, POLL if fixed_shapes else 1, on_step)
        done |= canvas.harvest(eos_ids, places_are_wanted=fixed_shapes and bool(waiting))
        if not canvas.live and not (fixed_shapes and waiting):  # an idle place is still a place
            canvas = None
    denoiser.train(training)
    return [done[i] for i in range(len(prompts))]


def checked(
    denoiser: Denoiser,
    prompts: list[list[int]],
    max_new_tokens: int,
    eos_id: int | list[int] | None,
    batch_size: int,
    sliding: bool,
) -> Int[Tensor, " E"]:
    """The EOS tokens on the model's device; `ValueError` for what cannot be decoded."""
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} and batch_size {batch_size} must be at least 1")
    if denoiser.token_shift and not all(prompts):
        raise ValueError("an empty prompt cannot be continued with the token shift: begin it with a BOS token")
    for number, prompt in enumerate(prompts, 1):
        if denoiser.mask_id in prompt:
            raise ValueError(f"prompt {number} holds the mask token (id {denoiser.mask_id}): it stands for no text")
    longest = max(map(len, prompts), default=0)
    row = room(longest + max_new_tokens, denoiser.pattern.block_size, sliding)
    what = f"a row of {row} tokens (a prompt of {longest}, max_new_tokens {max_new_tokens}, up to the end of a block)"
    require_positions(denoiser.model, row if prompts else 0, what, "shorten the prompt or lower max_new_tokens")
    return torch.tensor([] if eos_id is None else eos_id, dtype=torch.long, device=denoiser.model.device).flatten()


@torch.no_grad()
def in_batches(
    begin: Begin,
    denoiser: Denoiser,
    prompts: list[list[int]],
    max_new_tokens: int,
    eos_id: int | list[int] | None,
    batch_size: int = 32,
    on_step: OnStep | None = None,
    kind: type[Canvas] = Canvas,
    sliding: bool = False,
    spare: int = 0,
    rows_leave: bool = False,
) -> list[Generation]:
    """For decoders with a loop of their own: every prompt, in order, `batch_size` side by side until all are finished.

    `begin(canvas, eos_ids)` gives what makes one forward of a canvas and commits. The canvas is of a `kind` and has
    `spare` slots behind the longest sequence. Finished sequences leave it where `rows_leave`, else they stay: what a
    loop keeps beside the canvas has a row of each. Raises `ValueError` as `generate`.
    """
    eos_ids = checked(denoiser, prompts, max_new_tokens, eos_id, batch_size, sliding)
    training, size = denoiser.training, denoiser.pattern.block_size
    denoiser.eval()
    done: dict[int, Generation] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths share a batch
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        longest = max(room(len(prompts[i]) + max_new_tokens, size, sliding) for i in chosen)
        share = [prompts[i] for i in chosen]
        canvas = kind(denoiser, share, chosen, max_new_tokens, longest + spare, sliding=sliding)
        forward = begin(canvas, eos_ids)
        while not bool(canvas.finished.all()):
            forward()
            if on_step is not None:
                on_step(canvas)
            if rows_leave:
                done |= canvas.harvest(eos_ids)
        done |= canvas.results(canvas.live, eos_ids)
    denoiser.train(training)
    return [done[i] for i in range(len(prompts))]


def forwards(run: Callable[[Canvas], None], canvas: Canvas, count: int, on_step: OnStep | None) -> None:
    for _ in range(count):
        run(canvas)
        if on_step is not None:
            on_step(canvas)


def is_closed(decoder: Decoder, stop: Stop | None) -> bool:
    """Whether a step asks the host for nothing, and draws from no generator of the caller's."""
    return stop is None and decoder.temperature == 0


def replays(device: torch.device, decoder: Decoder, stop: Stop | None) -> bool:
    """Whether a step can be a CUDA graph."""
    return device.type == "cuda" and is_closed(decoder, stop)
