"""The figures of docs/results/vision.md about what a step reads and about positions, on random models:

    python tests/vision_figures.py columns sdpa|band       # columns, pairs and seconds of a training step
    python tests/vision_figures.py positions               # what it costs to number all tokens on one axis

`columns` takes a minute of one thread; its seconds are of the process, so other work does not count.
"""

import statistics
import sys
import time

import torch
from common import MASK_ID
from test_vision_traps import on_one_axis
from transformers import AutoConfig, AutoModelForImageTextToText
from visions import BEGIN, END, IMAGE, MARKS, PATCHED, PATCHES, arguments, blind, packed, vision

import dlm.model.denoiser
from dlm.attention import block_sparse
from dlm.attention.ar import AR
from dlm.attention.block import Block
from dlm.conversion.objective import Objective
from dlm.conversion.prepare import corrupt, lay_out
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.model.tower import heard_of
from dlm.types import Images, Noised, generator

VOCABULARY, PROMPT, ANSWER, REPEATS = 32_000, 1_500, 100, 3
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6}
TEXT |= {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096, "pad_token_id": 0}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2}
TEXT |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}}
TOWER = PATCHES | {"depth": 4, "hidden_size": 128, "intermediate_size": 384, "patch_size": 14, "out_hidden_size": 256}
TOWER |= {"temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [3]}


def document(sizes: tuple[int, int, int], patches: tuple[int, int], texts: tuple[int, int], wide: int, seed: int):
    """(ids, length of the prompt, images) of `sizes` random tokens before an image, behind it and of the answer, with
    ids from `texts`; the image is of `patches`, high and wide, of `wide` numbers each."""
    before, behind, answer = sizes
    high, across = patches
    drawn = generator(seed)

    def text(n: int) -> torch.Tensor:
        return torch.randint(*texts, (n,), generator=drawn)

    image = torch.tensor([BEGIN, *[IMAGE] * (high * across // 4), END])
    prompt = torch.cat([text(before), image, text(behind)])
    pixels = torch.randn(high * across, wide, generator=drawn)
    of_images = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, high, across]])}
    of_tokens = {"mm_token_type_ids": (prompt == IMAGE).long()[None]}
    return torch.cat([prompt, text(answer)]), len(prompt), Images(of_images, of_tokens, len(prompt))


def columns(implementation: str) -> None:
    """Our layout of a document with a long prompt against the plain [noisy ; clean], with the same attention."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen2_5_vl", text_config=TEXT, vision_config=TOWER, **MARKS)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation=block_sparse.loaded_as(implementation))
    block_sparse.set_implementation(model, implementation).train()
    high, across = 48, 64
    before = 100
    behind = PROMPT - before - high * across // 4 - 2
    batch = packed([[document((before, behind, ANSWER), (high, across), (60, VOCABULARY), 3 * 2 * 14 * 14, 0)]])
    scorer = Denoiser(model, Block(8), VOCABULARY - 1, False, layer_types(model))
    ready = lay_out(scorer, batch, noised := corrupt(scorer, Uniform(), batch, generator(1)), Objective(Nelbo()))
    layouts = {"ours": ready.inputs, "plain": scorer.inputs(batch, noised)[0].settled()}

    def step(inputs) -> tuple[float, float]:
        model.zero_grad(set_to_none=True)
        start = time.process_time()
        loss = scorer.loss(inputs, ready.scored, Nelbo(), ready.num_tokens).loss
        loss.backward()
        return time.process_time() - start, float(loss)

    def tower() -> float:
        start = time.process_time()
        heard = [x for x in heard_of(model, ready.inputs.pictured) if x.requires_grad]
        torch.autograd.backward(heard, [torch.ones_like(x) for x in heard])
        return time.process_time() - start

    for name, inputs in layouts.items():
        row = inputs.rows[0]
        pairs = int(inputs.pattern.visible(row[:, None], row[None]).sum())
        step(inputs)
        seconds, losses = zip(*(step(inputs) for _ in range(REPEATS)), strict=True)
        size = f"{inputs.input_ids.numel():,} columns, {pairs:,} pairs"
        print(f"{name}: {size}, {statistics.median(seconds):.2f} s, loss {losses[0]:.6f}", flush=True)
    print(f"the tower alone: {statistics.median(tower() for _ in range(REPEATS)):.2f} s")


@torch.no_grad()
def positions(documents: int = 8) -> None:
    """How far the parent's predictions behind an image move on one axis, and without the image."""
    recorded = dlm.model.denoiser.record
    for family in PATCHED:
        model = vision(family)
        scorer = Denoiser(model, AR(), MASK_ID, True, layer_types(model))
        for side in (2, 8):
            moved = {"one axis": [], "no image": []}
            for seed in range(documents):
                ids, prompt, images = made = document((8, 16, 32), (2 * side, 3 * side), (5, 45), 48, seed)
                batch = packed([[made]])
                inputs = scorer.inputs(batch, Noised(batch.x0, batch.maskable, batch.maskable.float()))[0].settled()
                own = model(**arguments(ids, images), use_cache=False).logits[0, prompt - 1 : -1].clone()
                kept = logits(scorer, inputs, recorded)
                own[:, MASK_ID] = kept[:, MASK_ID] = 0
                assert (kept - own).abs().max() < 1e-5, "in the AR limit, these are the parent's own logits"
                for name, control in (("one axis", on_one_axis), ("no image", blind)):
                    moved[name].append(distance(logits(scorer, inputs, lambda *a, f=control: f(recorded(*a))), own))
            for name, values in moved.items():
                nats, same = (sum(column) / documents for column in zip(*values, strict=True))
                print(f"{family}, {side} x {3 * side // 2} tokens, {name}: KL {nats:.2f}, same {same:.0%}", flush=True)


def logits(scorer: Denoiser, inputs, record) -> torch.Tensor:
    """The scorer's logits where the context of the images is what `record` gives."""
    recorded, dlm.model.denoiser.record = dlm.model.denoiser.record, record
    try:
        return scorer(inputs)
    finally:
        dlm.model.denoiser.record = recorded


def distance(other: torch.Tensor, own: torch.Tensor) -> tuple[float, float]:
    """(KL of the parent's predictions from others in nats, share of equal likeliest tokens), without the mask token."""
    tokens = [token for token in range(own.shape[1]) if token != MASK_ID]
    p, q = own[:, tokens].log_softmax(-1), other[:, tokens].log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean()), float((p.argmax(-1) == q.argmax(-1)).double().mean())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["columns", ("sdpa" | "band") as attention]:
            columns({"sdpa": "sdpa", "band": block_sparse.NAME}[attention])
        case ["positions"]:
            positions()
        case _:
            sys.exit(__doc__)
