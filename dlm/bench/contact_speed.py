"""The items of a first contact that say how fast training and decoding are at the shapes of real models."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from dlm.bench.base import Workbench
from dlm.bench.contact import Contact, Result, error_of
from dlm.bench.decode import arms_of, cache_bytes_per_token, slopes, weight_bytes
from dlm.bench.engines import HF, OURS, OURS_AR, Engine, engines, ignoring_eos, own_engine, run
from dlm.bench.train import Case, Train, peak_bytes, set_up
from dlm.bench.train_tables import AR, NAIVE
from dlm.config.build import ar_denoiser
from dlm.decoding.engine.request import Request
from dlm.evaluation.timing import interleaved, ratio, spread
from dlm.loss.nelbo import Nelbo
from dlm.model.checkpointing import checkpoint_activations

GB = 1e9
ALLOWED = 0.05  # of the loss and gradients in bfloat16
COMPARED = ("embed_tokens.weight", "layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight")
COMPARED += ("layers.0.self_attn.v_proj.weight", "mlp.down_proj.weight")


def training(size: str, contact: Contact) -> Result:
    """A step without the optimizer: ours, the AR parent's and, last and if it fits, the naive one; the loss and five
    gradients of ours against the naive ones. Then steps with an optimizer."""
    scale = contact.scale
    bench = contact.workbench(contact.parent(size))
    bench.model.train()
    task = Train(scale.length, 1, scale.block, memory=False)
    case = task.case(bench)
    losses = task.losses(bench, case)
    arms = {name: task.arm(bench, name, losses[name]) for name in (OURS, AR, NAIVE)}
    result: Result = {"arms": {}, "parameters": sum(p.numel() for p in bench.model.parameters())}
    together = {name: arms[name] for name in (OURS, AR)}
    result |= if_it_fits(lambda: {"agreement": agreement(bench, losses)})
    times = interleaved(together, bench.repeats, bench.warmup, bench.clock)
    alone = if_it_fits(lambda: interleaved({NAIVE: arms[NAIVE]}, min(bench.repeats, 2), 1, bench.clock))
    times |= {name: seconds for name, seconds in alone.items() if name == NAIVE}
    for name, seconds in times.items():
        took = spread(seconds)["median"]
        useful = task.useful(bench, case, name)
        result["arms"][name] = {
            "ms": took * 1e3,
            "tokens_per_second": scale.length / took,
            "useful_mfu": useful / took / (bench.peak_tflops * 1e12) if useful and bench.peak_tflops else None,
            "peak_gb": peak_bytes(arms[name]) / GB if contact.device.type == "cuda" else None,
        }
    result["naive_over_ours"] = (
        spread(times[NAIVE])["median"] / spread(times[OURS])["median"] if NAIVE in times else None
    )
    result["ours_over_ar"] = ratio(times[OURS], times[AR])
    bench.model.zero_grad(set_to_none=True)
    return result | {"with_optimizer": if_it_fits(partial(with_optimizer, bench, case, size))}


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


def if_it_fits(measure: Callable[[], Result]) -> Result:
    """What `measure` gives, or that it does not fit on the device."""
    try:
        return measure()
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return {"does_not_fit": str(error).splitlines()[0]}


def decoding(
    size: str, batches: Callable[[Contact], tuple[int, ...]], per_step: tuple[int, ...], contact: Contact
) -> Result:
    """Forced numbers of tokens in a step against AR, at several batch sizes: forwards/s by the slope between two
    lengths, as a fraction of what the bandwidth allows."""
    bench = contact.workbench(contact.parent(size))
    bench.model.eval()
    with torch.no_grad(), ignoring_eos(bench.model):
        points = {f"batch {n}": decode_point(bench, contact, n, per_step) for n in batches(contact)}
        points["compiled"] = {"same_tokens": same_when_compiled(bench, contact)}
    return points


def decode_point(bench: Workbench, contact: Contact, batch_size: int, per_step: tuple[int, ...]) -> Result:
    """Ours at each number of tokens in a step, and AR, for one batch size."""
    scale = contact.scale
    prompts = bench.ids(batch_size, scale.prompt)
    short, long = (own_ways(bench, prompts, new, per_step, scale.block) for new in scale.new)
    forwards = {name: run(bench, name, engine).forwards for name, engine in long.items()}
    rounds = min(bench.repeats, 3)
    times = interleaved(arms_of(bench, long), rounds, 1, bench.clock)
    per_forward = slopes(bench, short, forwards, times)
    context = scale.prompt + scale.new[1] / 2
    nbytes = weight_bytes(bench.model) + batch_size * context * cache_bytes_per_token(bench.model)
    ar = next(name for name in long if name.startswith(OURS_AR))

    def summary(name: str) -> Result:
        tokens_per_forward = scale.new[1] / forwards[name]
        return {
            "forwards_per_second": 1 / per_forward[name],
            "fraction_of_bandwidth": bench.peak_bandwidth_gbs
            and nbytes / (bench.peak_bandwidth_gbs * 1e9) / per_forward[name],
            "tokens_per_forward": tokens_per_forward,
            "tokens_per_second": batch_size * tokens_per_forward / per_forward[name],
            "over_ar": tokens_per_forward * per_forward[ar] / per_forward[name],
            "seconds_of_a_call": spread(times[name])["median"],
        }

    return {name: summary(name) for name in long}


def own_ways(
    bench: Workbench, prompts: Tensor, new_tokens: int, per_step: tuple[int, ...], block_size: int
) -> dict[str, Engine]:
    """Our engine at each number of tokens in a step, and AR."""
    request = Request(prompts.tolist(), new_tokens, batch_size=len(prompts), compile=bench.compile)
    blocks, ar = bench.denoiser(block_size), ar_denoiser(bench.parent)
    ways = {f"{OURS}, {k} a step": own_engine(blocks, request, k, nullcontext()) for k in per_step}
    return ways | {OURS_AR: own_engine(ar, request, 1, nullcontext())}


def same_when_compiled(bench: Workbench, contact: Contact) -> float:
    """The share of tokens that plain decoding gives as well. In bfloat16, near-ties of a random model turn some."""
    request = Request(bench.ids(1, contact.scale.prompt).tolist(), contact.scale.new[0], compile=True)
    denoiser = bench.denoiser(contact.scale.block)
    plain = Request(request.prompts, request.max_new_tokens)
    a, b = (own_engine(denoiser, r, 1, nullcontext())().tokens for r in (request, plain))
    return float((a == b).double().mean())


def hugging_face(contact: Contact) -> Result:
    """`generate` of Hugging Face on the AR parent, one sequence: what a user has today."""
    bench = contact.workbench(contact.parent("1.5B"))
    bench.model.eval()
    short, long = (n // 8 for n in contact.scale.new)
    with torch.no_grad(), ignoring_eos(bench.model):
        prompts = bench.ids(1, contact.scale.prompt)
        ways = [{HF: engines(bench, prompts, contact.scale.block, 1, new)[HF]} for new in (short, long)]
        forwards = {HF: run(bench, HF, ways[1][HF]).forwards}
        times = interleaved(arms_of(bench, ways[1]), 2, 1, bench.clock)
        return {"forwards_per_second": 1 / slopes(bench, ways[0], forwards, times)[HF]}


def one(contact: Contact) -> tuple[int, ...]:
    return (1,)


ITEMS = {
    "train 1.5B": partial(training, "1.5B"),
    "decode 1.5B": partial(decoding, "1.5B", one, (1, 2, 4)),
    "decode 8B": partial(decoding, "8B", one, (1, 4)),
    "decode 4B": partial(decoding, "4B", one, (1, 4)),
    "train 8B": partial(training, "8B"),
    "decode 1.5B, batches": partial(decoding, "1.5B", lambda contact: contact.scale.batches, (1, 4)),
    "Hugging Face": hugging_face,
}
