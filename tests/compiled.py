"""Programs of tests/test_compiled.py: `python tests/compiled.py NAME`. Each is a process of its own, because torch
cannot trace through the shape checks of the tests. Lightning is imported, which wraps `torch.compile`; nothing else is
replaced but, where said, the backend."""

import functools
import json
import re
import sys
from dataclasses import replace

import lightning  # noqa: F401
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from torch.nn.attention import flex_attention
from transformers import AutoConfig, AutoModelForCausalLM

from dlm.attention import block_sparse
from dlm.attention.ar import AR
from dlm.attention.block import Block
from dlm.attention.masks import block_mask
from dlm.conversion.prepare import prepare
from dlm.decoding.engine.canvas import Canvas
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.step import step
from dlm.decoding.fixed import Fixed, MostConfident
from dlm.decoding.threshold import Threshold
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.types import Batch, generator

LAYERS, MASK_ID = 3, 60


def llama(heads: int = 4, key_heads: int = 2):
    shape = {"vocab_size": 61, "hidden_size": 16 * heads, "intermediate_size": 48, "num_hidden_layers": LAYERS}
    config = AutoConfig.for_model(
        "llama", num_attention_heads=heads, num_key_value_heads=key_heads, initializer_range=0.3, **shape
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    return block_sparse.set_implementation(model, block_sparse.NAME)


def scorer_of(model, pattern) -> Denoiser:
    return Denoiser(model, pattern, MASK_ID, True, layer_types(model))


def count_graphs() -> CompileCounterWithBackend:
    """Compile with a backend that counts the graphs and runs them as they are."""
    counter = CompileCounterWithBackend("eager")
    torch.compile = functools.partial(torch.compile, backend=counter)
    return counter


def told(generations) -> list:
    return [(g.tokens, g.nfe, g.rows, g.step) for g in generations]


def tokens() -> dict:
    """A ragged batch of more prompts than places, by two rules and several of their numbers."""
    counter, scorer = count_graphs(), scorer_of(llama(), Block(4))
    request = Request([[5, 6, 7], [8, 9, 10, 11, 12], [3] * 9, [4] * 6, [7, 8]], 12, 0, batch_size=2)
    graphs = []
    for decoder in (Threshold(0.5), Threshold(0.3), Fixed(1), Fixed(2), Fixed(4)):
        ours = decoder.generate(scorer, replace(request, compile=True))
        assert told(ours) == told(decoder.generate(scorer, request)), decoder
        graphs.append(counter.frame_count)
    return {"graphs": graphs, "breaks": sum(counters["graph_break"].values())}


def pictures() -> dict:
    """Prompts with one image, several and none, of which one reaches into the block of its answer; features in deeper
    layers, and images both ways under a sliding window."""
    from visions import prompts, seeing  # it has the functions checked that are imported later: none of decoding

    count_graphs()
    found = {}
    for family in ("qwen3_vl", "gemma3"):
        torch._dynamo.reset()
        counters.clear()
        scorer = seeing(family, Block(4), True, implementation=block_sparse.NAME, dtype=torch.float32)
        texts, images = prompts(family, [(3, 5, 1), (2, 3, 2), (6, 1, 1), (6, 2, 0)])
        request = Request(texts, 12, 2, batch_size=2, images=images)
        ours = Threshold(0.2).generate(scorer, replace(request, compile=True))
        assert told(ours) == told(Threshold(0.2).generate(scorer, request)), family
        found[family] = {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
    return found


def points() -> dict:
    """The 24 points of the decoding benchmark: types, batch sizes, tokens per step, and AR."""
    counter, model = count_graphs(), llama()
    blocks, ar = (scorer_of(model, pattern) for pattern in (Block(32), AR()))
    graphs = []
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        for batch_size in (1, 8, 32):
            request = Request([[5] * 32] * batch_size, 64, batch_size=batch_size, compile=True)
            for scorer, k in ((blocks, 1), (blocks, 2), (blocks, 4), (ar, 1)):
                before = counter.frame_count
                Fixed(k).generate(scorer, request)
                graphs.append((str(dtype), batch_size, k if scorer is blocks else "AR", counter.frame_count - before))
    return {"graphs": graphs, "breaks": sum(counters["graph_break"].values())}


def training_layer() -> dict:
    """A training step of compiled layers with the mask that a GPU has."""
    flex_attention._validate_device = lambda *args: None  # no kernel is compiled here, and CPUs have none for gradients
    counter, scorer = count_graphs(), scorer_of(llama().train(), Block(4))
    scorer.masks = lambda q, k, layout, pattern: block_mask(pattern, q, k)
    x0 = torch.randint(2, MASK_ID, (1, 128), generator=generator(0))
    batch = Batch(x0, torch.ones_like(x0, dtype=torch.bool), torch.zeros_like(x0), torch.arange(128)[None])
    scorer.compile(backend=counter, fullgraph=True)
    inputs = [prepare(scorer, Uniform(), batch, generator(seed)) for seed in range(3)]
    for i in inputs:
        scorer.loss(i.inputs, i.scored, Nelbo(), i.num_tokens).loss.backward()
    assert all(p.grad.isfinite().all() for p in scorer.parameters())
    return {"graphs": counter.frame_count, "breaks": sum(counters["graph_break"].values())}


def cache_copies() -> dict:
    """The buffers that the generated code of a layer allocates, in elements, beside the size of its cache."""
    slots, batch, heads, width = 1023, 2, 2, 16
    scorer = scorer_of(llama(), Block(4))
    canvas = Canvas(scorer, Request([[5] * 9] * batch, 30), [0, 1], slots, fixed_shapes=True)
    with torch.no_grad():
        step(scorer, canvas, MostConfident(1))
        canvas.make_room_for_pending(ask=False)
        _, codes = run_and_get_code(step, scorer, canvas, MostConfident(1).on(torch.device("cpu")), compile=True)
    (layer,) = (code for code in codes if "flex_attention" in code or "kvSize" in code)
    shapes = re.findall(r"empty_strided_\w+\(\(([^)]*)\)", layer)
    largest = max(functools.reduce(int.__mul__, map(int, shape.rstrip(", ").split(", "))) for shape in shapes)
    return {"largest": largest, "cache": batch * heads * (slots + 1) * width}


def ordinary() -> dict:
    """Three of them: importing torch's compiler takes longer than any."""
    found = {"training_layer": training_layer()}
    torch._dynamo.reset()
    counters.clear()
    return found | {"tokens": tokens(), "pictures": pictures()}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
