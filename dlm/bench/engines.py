"""The ways to decode that are compared: ours, a naive cached loop, AR by our engine and by Hugging Face `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from dlm.bench import naive
from dlm.bench.base import Workbench, use
from dlm.config.build import ar_denoiser
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.evaluation.timing import Clock
from dlm.model.denoiser import Denoiser
from dlm.model.packed_linears import PackedLinears

OURS, AGAIN, NAIVE, OURS_AR, HF = "ours", "ours again", "naive loop", "ours, AR", "HF generate"


SETTLED = 8  # forwards after which a call is set up: prefill, warm-ups and capture of its graphs lie before


@dataclass(frozen=True)
class Decoded:
    """The new tokens of every sequence, the forwards that they took side by side, prefill and commits included, and the
    seconds of a forward after the first `SETTLED` ones (of any, where there are no more)."""

    tokens: Int[Tensor, "N T"]
    forwards: int
    seconds: float


class Stopwatch:
    """Counts forwards and times those after the first `SETTLED`, where there are more. It makes the host wait for the
    device twice in a call."""

    def __init__(self, clock: Clock):
        self.clock, self.forwards = clock, 0
        self.began = self.settled = clock()

    def count(self, *args: Any) -> None:
        """Called after every forward."""
        self.forwards += 1
        if self.forwards == SETTLED:
            self.settled = self.clock()

    def seconds(self) -> float:
        """The seconds of a forward, at the end of a call."""
        began, before = (self.settled, SETTLED) if self.forwards > SETTLED else (self.began, 0)
        return (self.clock() - began) / (self.forwards - before)


Engine = Callable[[], Decoded]


def engines(
    bench: Workbench, prompts: Int[Tensor, "N P"], block_size: int, tokens_per_step: int, new_tokens: int
) -> dict[str, Engine]:
    """Every way to decode `new_tokens` after the same prompts, the reference of ratios last."""
    parent, on_device = bench.parent, prompts.to(bench.device)

    def loop() -> Int[Tensor, "N T"]:
        settings = (new_tokens, parent.mask_id, block_size, tokens_per_step, bench.token_shift)
        return naive.decode(parent.model, parent.layer_types, on_device, *settings)

    rule = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, suppress_tokens=[parent.mask_id], pad_token_id=0
    )
    present = torch.ones_like(on_device)

    def hugging_face() -> Int[Tensor, "N T"]:
        return parent.model.generate(on_device, attention_mask=present, generation_config=rule)[:, prompts.shape[1] :]

    # The compiler has no kernel for weights that are packed already, nor has a GPU.
    linears = None if bench.compile or bench.device.type != "cpu" else PackedLinears(bench.model)
    request = Request(prompts.tolist(), new_tokens, batch_size=len(prompts), compile=bench.compile)
    ours = own_engine(bench, bench.denoiser(block_size), request, tokens_per_step, linears)
    return {
        OURS: ours,
        NAIVE: counted(bench, loop),
        AGAIN: ours,
        OURS_AR: own_engine(bench, ar_denoiser(parent), request, 1, linears),
        HF: counted(bench, hugging_face),
    }


def ready(bench: Workbench, name: str) -> None:
    """The arm's own attention."""
    use(bench.model, bench.attention if name in (OURS, AGAIN, OURS_AR) else bench.plain_attention)


def run(bench: Workbench, name: str, engine: Engine) -> Decoded:
    """What an engine decodes, on the CPU."""
    ready(bench, name)
    decoded = engine()
    return replace(decoded, tokens=decoded.tokens.cpu())


def own_engine(
    bench: Workbench,
    denoiser: Denoiser,
    request: Request,
    tokens_per_step: int,
    linears: AbstractContextManager[object] | None = None,
) -> Engine:
    """Our engine, within the context `linears`, if any. Its forwards are those of the generations: a graph that is
    replayed calls no hook."""

    def decode() -> Decoded:
        watch = Stopwatch(bench.clock)
        with linears or nullcontext():
            generations = Fixed(tokens_per_step).generate(denoiser, replace(request, on_step=watch.count))
        tokens = torch.tensor([g.tokens for g in generations])
        return Decoded(tokens, max(g.nfe for g in generations), watch.seconds())

    return decode


def counted(bench: Workbench, decode: Callable[[], Int[Tensor, "N T"]]) -> Engine:
    """A way to decode that is not ours, whose forwards are counted by a hook."""

    def engine() -> Decoded:
        watch = Stopwatch(bench.clock)
        hook = bench.model.get_decoder().register_forward_hook(watch.count)
        try:
            tokens = decode()
        finally:
            hook.remove()
        return Decoded(tokens, watch.forwards, watch.seconds())

    return engine


@contextmanager
def ignoring_eos(model: PreTrainedModel) -> Iterator[None]:
    """`generate` fills what its argument leaves open from the model's own generation config, the EOS too."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept
