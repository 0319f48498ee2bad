"""The items of a first contact that say whether the device computes what it should, and how fast it can."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import version
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dlm.attention import block_sparse
from dlm.attention.base import AttentionPattern
from dlm.attention.block import Block
from dlm.attention.block_causal import BlockCausal
from dlm.attention.masks import attention_masks, dense_mask
from dlm.bench.contact import Contact, Result, error_of
from dlm.conversion.prepare import prepare
from dlm.conversion.selfcheck import check
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold
from dlm.evaluation.timing import Arm, clock_of, interleaved
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.denoiser import Denoiser
from dlm.types import Batch, Prepared, Rows, generator

HEADS = {"12:2": (12, 2), "32:8": (32, 8)}  # of queries and keys: those of Qwen2.5-1.5B, and of Qwen3-4B and -8B
HEAD_DIM = 128
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
LAYERS = 2


def ceilings(contact: Contact) -> Result:
    """What the machine can do: the denominators of every fraction. A square bfloat16 product, and a copy."""
    n, device = contact.scale.matmul, contact.device
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(contact.scale.copy, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    arms = {"matmul": Arm(lambda: a @ b), "copy": Arm(lambda: target.copy_(source))}
    seconds = {name: min(t) for name, t in interleaved(arms, 10, 3, clock_of(device)).items()}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "versions": {name: version(name) for name in ("torch", "transformers", "lightning")},
        "python": platform.python_version(),
        "tflops": 2 * n**3 / seconds["matmul"] / 1e12,
        "gbs": 2 * source.numel() / seconds["copy"] / 1e9,
    }


def attention(contact: Contact) -> Result:
    """Sparse attention against dense SDPA in float32: output and gradients of two ragged documents, and the rows of a
    decoding step over a cache."""
    errors: dict[str, Result] = {}
    for (heads, (q, k)), dtype in product(HEADS.items(), (torch.float32, torch.bfloat16)):
        for pattern in (Block(32), BlockCausal(32)):
            rows = two_documents(pattern, contact.device)
            name = f"{heads} {str(dtype).removeprefix('torch.')} {type(pattern).__name__}"
            errors[f"{name}, training"] = compare(contact, pattern, rows, rows, (q, k), dtype, gradients=True)
        for size in (64, 1):
            pattern = Block(max(size // 2, 1))
            queries, slots = step_over_a_cache(size, contact.device)
            name = f"{heads} {str(dtype).removeprefix('torch.')} {size} rows over {slots.position.shape[1]} slots"
            errors[name] = compare(contact, pattern, queries, slots, (q, k), dtype, gradients=False)
        contact.keep({"errors": errors})
    return {"errors": errors, "ok": all(e["error"] <= e["allowed"] for e in errors.values())}


def two_documents(pattern: AttentionPattern, device: torch.device) -> Rows:
    """[noisy ; clean] of 512 tokens: a document of 288 and one of 224."""
    sizes = (288, 224)
    position = torch.cat([torch.arange(n) for n in sizes]).repeat(2)[None].to(device)
    document = torch.cat([torch.full((n,), i) for i, n in enumerate(sizes)]).repeat(2)[None].to(device)
    return Rows(torch.arange(1024, device=device)[None] >= 512, document, position)


def step_over_a_cache(size: int, device: torch.device) -> tuple[Rows, Rows]:
    """The rows of a step at slot 512, and the 769 slots of a cache, of which those behind it are empty."""
    slots = torch.arange(-1, 768, device=device)[None]
    end = 512 + size
    k = Rows(slots < 512 + size // 2, torch.where((slots >= 0) & (slots < end), 0, -1), slots)
    return k[:, 513 : 513 + size], k


def compare(
    contact: Contact,
    pattern: AttentionPattern,
    q_rows: Rows,
    k_rows: Rows,
    heads: tuple[int, int],
    dtype: torch.dtype,
    gradients: bool,
) -> Result:
    """The largest relative error of the output and, with `gradients`, of the gradients of queries, keys and values."""

    def random(heads: int, rows: Rows, seed: int) -> Tensor:
        shape = (1, heads, rows.position.shape[1], HEAD_DIM)
        values = torch.randn(shape, generator=generator(seed)).to(contact.device, dtype)
        return values.requires_grad_(gradients)

    q, k, v = random(heads[0], q_rows, 0), random(heads[1], k_rows, 1), random(heads[1], k_rows, 2)
    mask = attention_masks(pattern, q_rows, k_rows, {"full_attention": None}, block_sparse.NAME, tiled=True)
    ours = block_sparse.block_sparse_attention(None, q, k, v, mask)[0].transpose(1, 2)
    wide = [t.detach().float().requires_grad_(gradients) for t in (q, k, v)]
    ratio = heads[0] // heads[1]
    repeated = [wide[0], *(t.repeat_interleave(ratio, 1) for t in wide[1:])]
    theirs = scaled_dot_product_attention(*repeated, dense_mask(pattern, q_rows, k_rows))
    errors = [error_of(ours, theirs)]
    if gradients:
        ours.float().square().sum().backward()
        theirs.square().sum().backward()
        errors += [error_of(a.grad, b.grad) for a, b in zip((q, k, v), wide, strict=True)]
    return {"error": max(errors), "allowed": ALLOWED[dtype]}


def small_model(contact: Contact) -> Result:
    """Two layers in float32, of a head shape that no kernel fits by itself: compiled, replayed and plain decoding of a
    ragged batch give the tokens and forwards of a CPU, with and without pending rows; a seeded sample comes again; the
    self-check passes; training in bfloat16 follows float32."""
    heads, key_heads = HEADS["32:8"]
    parent = contact.made(
        "8B",
        "float32",
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=HEAD_DIM,
        hidden_size=512,
        intermediate_size=1024,
        initializer_range=0.05,
    )
    denoiser = Denoiser(parent.model, Block(contact.scale.small_block), parent.mask_id, False, parent.layer_types)
    result = decoding_of(contact, denoiser)
    contact.keep(result)
    losses = losses_of(contact, denoiser)
    gap = max(abs(a / b - 1) for a, b in zip(losses["bfloat16"], losses["float32"], strict=True))
    result |= {"losses": losses, "training": {"error": gap, "allowed": ALLOWED[torch.bfloat16]}}
    return result | {"ok": result["same_tokens"] and result["same_sample"] and gap <= ALLOWED[torch.bfloat16]}


def decoding_of(contact: Contact, denoiser: Denoiser) -> Result:
    """Tokens and forwards on a CPU, on the device and there compiled; a sample twice; the self-check."""
    vocabulary, scale = denoiser.mask_id, contact.scale
    prompts = [torch.randint(vocabulary, (n,), generator=generator(n)).tolist() for n in scale.prompts]
    request, decoder = Request(prompts, scale.answer, batch_size=4), Threshold(0.02)
    denoiser.model.to("cpu")
    whole = decoder.generate(denoiser, request)
    # Tokens of these answers as EOS, so that sequences end at different forwards and the batch shrinks.
    request = replace(request, eos_ids=tuple({g.tokens[len(g.tokens) // (n + 2)] for n, g in enumerate(whole)}))
    answers = []
    for device, compiles in (("cpu", False), (contact.device, False), (contact.device, True)):
        denoiser.model.to(device)
        generations = decoder.generate(denoiser, replace(request, compile=compiles))
        answers.append([(g.tokens, g.nfe) for g in generations])
    seeded = (replace(request, generator=generator(0, device=contact.device)) for _ in range(2))
    samples = [Fixed(2, temperature=1.0).generate(denoiser, r) for r in seeded]
    text = torch.randint(vocabulary, (128,), generator=generator(1))
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        passed = check(denoiser.eval(), text, half=False, untrained=True)
    return {
        "same_tokens": answers[0] == answers[1] == answers[2],
        "tokens_per_forward": sum(len(t) for t, _ in answers[0]) / sum(nfe for _, nfe in answers[0]),
        "same_sample": samples[0] == samples[1],
        "self_check": passed,
    }


def losses_of(contact: Contact, denoiser: Denoiser) -> dict[str, list[float]]:
    """The losses of three steps with fused AdamW, in float32 and with autocast to bfloat16."""
    start = {name: p.detach().clone() for name, p in denoiser.model.named_parameters()}
    steps = [batch_of(denoiser, seed, contact.device) for seed in range(3)]
    losses: dict[str, list[float]] = {}
    for name, enabled in (("float32", False), ("bfloat16", True)):
        with torch.no_grad():
            for key, parameter in denoiser.model.named_parameters():
                parameter.copy_(start[key])
        optimizer = torch.optim.AdamW(denoiser.model.parameters(), lr=1e-4, fused=True)
        losses[name] = []
        for prepared in steps:
            with torch.autocast(contact.device.type, torch.bfloat16, enabled=enabled):
                loss = denoiser.loss(prepared.inputs, prepared.scored, Nelbo(), prepared.num_tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(loss.item())
    return losses


def batch_of(denoiser: Denoiser, seed: int, device: torch.device) -> Prepared:
    """Two rows of 128 random tokens, prepared for training."""
    x0 = torch.randint(denoiser.mask_id, (2, 128), generator=generator(seed))
    batch = Batch(x0, torch.ones_like(x0, dtype=torch.bool), torch.zeros_like(x0), torch.arange(128).repeat(2, 1))
    return prepare(denoiser, Uniform(), batch, generator(seed)).to(device)


ITEMS = {"ceilings": ceilings, "attention": attention, "small model": small_model}
