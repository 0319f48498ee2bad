"""The items of a first contact that say how fast training and decoding are at the shapes of real models."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dlm.bench.base import Workbench
from dlm.bench.contact import Contact, Result, error_of
from dlm.bench.decode import arms_of, cache_bytes_per_token, weight_bytes
from dlm.bench.engines import HF, OURS, OURS_AR, engines, ignoring_eos, own_engine, run
from dlm.bench.train import Case, Train, peak_bytes, set_up
from dlm.bench.train_tables import AR, NAIVE
from dlm.config.build import ar_denoiser
from dlm.decoding.engine.request import Request
from dlm.evaluation.timing import Arm, interleaved, ratio, spread
from dlm.loss.nelbo import Nelbo
from dlm.model.checkpointing import checkpoint_activations

GB = 1e9
ALLOWED = 0.05  # of the loss and gradients in bfloat16
COMPARED = ("embed_tokens.weight", "layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight")
COMPARED += ("layers.0.self_attn.v_proj.weight", "mlp.down_proj.weight")


def training(size: str, contact: Contact) -> Result:
    """A step without the optimizer: ours, the AR parent's and, last and if it fits, the naive one; the loss and five
    gradients of ours against the naive ones. Then steps with an optimizer."""
    bench = contact.workbench(contact.parent(size))
    bench.model.train()
    task = Train(contact.scale.length, 1, contact.scale.block, memory=False)
    case = task.case(bench)
    losses = task.losses(bench, case)
    result: Result = {"parameters": sum(p.numel() for p in bench.model.parameters()), "arms": {}}

    def add(what: Result) -> None:
        result.update(what)
        contact.keep(result)

    def timed(names: tuple[str, ...], rounds: int) -> dict[str, list[float]]:
        arms = {name: task.arm(bench, name, losses[name]) for name in names}
        times = interleaved(arms, rounds, bench.warmup, bench.clock)
        work = {name: task.useful(bench, case, name) for name in names}
        add({"arms": result["arms"] | {n: of_step(contact, arms[n], times[n], work[n]) for n in names}})
        return times

    times = timed((OURS, AR), bench.repeats)
    add({"ours_over_ar": ratio(times[OURS], times[AR])})
    add(if_it_fits("agreement", lambda: agreement(bench, losses)))
    naive = if_it_fits(NAIVE, lambda: timed((NAIVE,), min(bench.repeats, 2)))
    add({"arms": naive | result["arms"]})
    bench.model.zero_grad(set_to_none=True)
    add(if_it_fits("with_optimizer", lambda: with_optimizer(bench, case, size)))
    error = result["agreement"].get("error")  # where the naive step does not fit, nothing is checked
    return result if error is None else result | {"ok": error <= ALLOWED}


def of_step(contact: Contact, arm: Arm, seconds: list[float], useful: int | None) -> Result:
    """What the times of a training step mean. `useful` is the FLOP that it needs."""
    took, peak = spread(seconds)["median"], contact.peaks.get("tflops")
    return {
        "ms": took * 1e3,
        "tokens_per_second": contact.scale.length / took,
        "useful_mfu": useful / took / (peak * 1e12) if useful and peak else None,
        "peak_gb": peak_bytes(arm) / GB if contact.device.type == "cuda" else None,
    }


def agreement(bench: Workbench, losses: dict[str, Callable[[], Tensor]]) -> Result:
    """The largest relative error of our loss and of some gradients against the naive ones."""
    values = {}
    for name in (OURS, NAIVE):
        set_up(bench, name)
        loss = losses[name]()
        loss.backward()
        chosen = [p for n, p in bench.model.named_parameters() if n.endswith(COMPARED)]
        values[name] = [loss.detach(), *(p.grad.clone() for p in chosen[: len(COMPARED)])]
    bench.model.zero_grad(set_to_none=True)
    error = max(error_of(a, b) for a, b in zip(values[OURS], values[NAIVE], strict=True))
    return {"error": error, "allowed": ALLOWED}


def with_optimizer(bench: Workbench, case: Case, size: str) -> Result:
    """Steps with fused AdamW: float32 weights under autocast, or, at 8B, bfloat16 weights whose layers are computed
    again in the backward. (AdamW on bfloat16 weights loses small updates: a measure of what fits, not a recipe.)"""
    mixed = size != "8B"
    if mixed:
        bench.model.float()
    else:
        checkpoint_activations(bench.model)
    optimizer = torch.optim.AdamW(bench.model.parameters(), lr=1e-5, fused=True)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    prepared, took, losses = case.prepared, [], []
    for _ in range(bench.warmup + 2):
        began = bench.clock()
        set_up(bench, OURS)
        with torch.autocast(bench.device.type, torch.bfloat16) if mixed else nullcontext():
            loss = case.denoiser.loss(prepared.inputs, prepared.scored, Nelbo(), prepared.num_tokens).loss
        loss.backward()
        optimizer.step()
        took.append(bench.clock() - began)
        losses.append(float(loss.detach()))
    peak = torch.cuda.max_memory_allocated() / GB if bench.device.type == "cuda" else None
    precision = "bf16-mixed" if mixed else "bf16-true, layers computed again"
    return {"precision": precision, "ms": min(took) * 1e3, "losses": losses, "peak_gb": peak}


def if_it_fits(name: str, measure: Callable[[], Any]) -> Result:
    """What `measure` gives, under its name, or that it does not fit on the device."""
    try:
        return {name: measure()}
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
    torch.cuda.empty_cache()  # behind the error, which holds what did not fit
    return {name: {"does_not_fit": reason}}


def decoding(
    size: str, batches: Callable[[Contact], tuple[int, ...]], per_step: tuple[int, ...], contact: Contact
) -> Result:
    """Forced numbers of tokens in a step against AR, at several batch sizes: forwards/s as a fraction of what the
    bandwidth allows."""
    bench = contact.workbench(contact.parent(size))
    bench.model.eval()
    points: Result = {}
    with torch.no_grad(), ignoring_eos(bench.model):
        for batch_size in batches(contact):
            points[f"batch {batch_size}"] = decode_point(bench, contact, batch_size, per_step)
            contact.keep(points)
        # In bfloat16, near-ties of a random model turn some.
        points["share_of_tokens_as_uncompiled"] = same_uncompiled(bench, contact)
    return points


def decode_point(bench: Workbench, contact: Contact, batch_size: int, per_step: tuple[int, ...]) -> Result:
    """Ours at each number of tokens in a step, and AR, for one batch size."""
    scale = contact.scale
    prompts = bench.ids(batch_size, scale.prompt)
    request = Request(prompts.tolist(), scale.new, batch_size=batch_size, compile=bench.compile)
    blocks, ar = bench.denoiser(scale.block), ar_denoiser(bench.parent)
    ways = {f"{OURS}, {k} a step": own_engine(bench, blocks, request, k) for k in per_step}
    ways[OURS_AR] = own_engine(bench, ar, request, 1)
    forwards = {name: run(bench, name, engine).forwards for name, engine in ways.items()}
    arms, per_forward = arms_of(bench, ways)
    interleaved(arms, min(bench.repeats, 3), 0, bench.clock)
    seconds = {name: statistics.median(rounds) for name, rounds in per_forward.items()}
    context = scale.prompt + scale.new / 2
    nbytes = weight_bytes(bench.model) + batch_size * context * cache_bytes_per_token(bench.model)
    limit = bench.peak_bandwidth_gbs and nbytes / (bench.peak_bandwidth_gbs * 1e9)

    def summary(name: str) -> Result:
        tokens_per_forward = scale.new / forwards[name]
        return {
            "forwards_per_second": 1 / seconds[name],
            "fraction_of_bandwidth": limit and limit / seconds[name],
            "tokens_per_forward": tokens_per_forward,
            "tokens_per_second": batch_size * tokens_per_forward / seconds[name],
            "over_ar": tokens_per_forward * seconds[OURS_AR] / seconds[name],
        }

    return {name: summary(name) for name in ways}


def same_uncompiled(bench: Workbench, contact: Contact) -> float:
    """The share of the tokens of compiled decoding that uncompiled decoding gives as well."""
    request = Request(bench.ids(1, contact.scale.prompt).tolist(), contact.scale.block, compile=True)
    denoiser = bench.denoiser(contact.scale.block)
    a, b = (own_engine(bench, denoiser, r, 1)().tokens for r in (request, replace(request, compile=False)))
    return float((a == b).double().mean())


def hugging_face(contact: Contact) -> Result:
    """`generate` of Hugging Face on the AR parent, one sequence: what a user has today."""
    bench = contact.workbench(contact.parent("1.5B"))
    bench.model.eval()
    prompts = bench.ids(1, contact.scale.prompt)
    with torch.no_grad(), ignoring_eos(bench.model):
        way = engines(bench, prompts, contact.scale.block, 1, contact.scale.new // 4)[HF]
        run(bench, HF, way)
        return {"forwards_per_second": 1 / run(bench, HF, way).seconds}


def one(contact: Contact) -> tuple[int, ...]:
    return (1,)


ITEMS = {
    "train 1.5B": partial(training, "1.5B"),
    "decode 1.5B": partial(decoding, "1.5B", one, (1, 2, 4)),
    "decode 8B": partial(decoding, "8B", one, (1, 4)),
    "decode 4B": partial(decoding, "4B", one, (1, 4)),
    "train 8B": partial(training, "8B"),
    "decode 1.5B, a batch": partial(decoding, "1.5B", lambda contact: contact.scale.batches, (1, 4)),
    "Hugging Face": hugging_face,
}
