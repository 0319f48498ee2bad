"""Speed by counts: the work of a step at the shapes of real models, and what is compiled how often."""

from types import SimpleNamespace

import pytest
import torch
from common import denoiser, everyday, random_batch, tiny
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from dlm.attention.ar import AR
from dlm.attention.block import Block
from dlm.attention.masks import TILE, block_mask
from dlm.conversion.prepare import prepare
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model import flops, trim
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.trainer.compilation import CompilerWatch, limits_reached
from dlm.types import Batch, generator

pytestmark = pytest.mark.trains

SHAPES = {
    "qwen2.5-1.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12288,
    },
}
LENGTH, BLOCK = 4096, 16


class Tiles(torch.autograd.Function):
    """Attention without work: it is counted by the tiles of its mask."""

    @staticmethod
    def forward(ctx, query, key, value):
        ctx.save_for_backward(query, key, value)
        return torch.empty_like(query)

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors)


AttentionInterface.register("tiles", lambda module, q, k, v, *args, **kw: (Tiles.apply(q, k, v).transpose(1, 2), None))


def step_flop(model, pattern, masked_share):
    """FLOP of our training step on a row of LENGTH tokens: linear maps as counted, attention by whole tiles."""
    scorer = Denoiser(model, pattern, 0, isinstance(pattern, AR), layer_types(model))
    x0 = torch.ones(1, LENGTH, dtype=torch.long)
    batch = Batch(x0, x0 > 0, torch.zeros_like(x0), torch.arange(LENGTH)[None])
    level = {"t_min": masked_share, "t_max": masked_share + 1e-6}
    prepared = prepare(scorer, Uniform(**level), batch, generator(0))
    mask = block_mask(pattern, prepared.inputs.rows, prepared.inputs.rows)
    tiles = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    scorer.masks = lambda *rows: mask
    moved = prepared.to("meta")
    with FlopCounterMode(display=False, custom_mapping=flops.formulas()) as counter:
        scorer.loss(moved.inputs, moved.scored, Nelbo(), LENGTH).loss.backward()
    config = model.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    pairs = tiles * TILE**2
    return counter.get_total_flops() + flops.ATTENTION * width * config.num_hidden_layers * pairs


@pytest.mark.parametrize(("name", "limit"), everyday([("qwen2.5-1.5b", 1.79), ("qwen3-8b", 1.88)]))
def test_a_step_costs_little_more_than_its_floor_against_an_ar_step(name, limit):
    """With half of the tokens masked; the floors are 1.76 and 1.85, the naive step is at 2.71 and 2.51."""
    shape = dict(SHAPES[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.pop("model_type"), **shape))
    model.config._attn_implementation = "tiles"
    ours = step_flop(model, Block(BLOCK), 0.5)
    closed = flops.Shape.of(model)
    parent = flops.plain_step(closed, LENGTH, LENGTH * (LENGTH + 1) // 2, LENGTH)
    assert 1.7 < ours / parent <= limit


def step(scorer, length, seed, rows=2):
    """The loss and all gradients of a step."""
    prepared = prepare(scorer, Uniform(), random_batch(rows, length, seed=seed), generator(seed))
    scorer.model.zero_grad()
    loss = scorer.loss(prepared.inputs, prepared.scored, Nelbo(), prepared.num_tokens).loss
    loss.backward()
    return loss.item(), [p.grad.clone() for p in scorer.model.parameters()]


def assert_same(steps, expected):
    for (loss, gradients), (plain_loss, plain_gradients) in zip(steps, expected, strict=True):
        assert loss == pytest.approx(plain_loss, rel=1e-6)
        for ours, theirs in zip(gradients, plain_gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("architecture", "checkpointing"),
    everyday([("llama", True), ("llama", False), ("gemma3_text", False), ("gemma3_text", True)]),
)
def test_layers_are_compiled_once_for_a_shape_whatever_the_masks(architecture, checkpointing):
    torch._dynamo.reset()
    model = tiny(architecture).train()
    scorer = denoiser(model, "block", 4, False)
    counter = CompileCounterWithBackend("aot_eager")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    plain = [step(scorer, 64, seed) for seed in range(3)]
    scorer.compile(backend=counter)
    assert_same([step(scorer, 64, seed) for seed in range(3)], plain)
    kinds = 1 if architecture == "llama" else 2  # of layers: sliding ones and full ones
    assert counter.frame_count <= kinds
    step(scorer, 96, 0)
    assert counter.frame_count <= 2 * kinds


def validate(scorer, length):
    prepared = prepare(scorer, Uniform(), random_batch(2, length), generator(0))
    with torch.inference_mode():
        scorer.eval()(prepared.inputs)
    scorer.train()


@pytest.mark.slow
def test_no_layer_runs_uncompiled_for_want_of_versions():
    """Every width to which rows are trimmed has a version for training and one for validation."""
    torch._dynamo.reset()
    scorer, counter, before = denoiser(tiny("llama").train(), "block", 4, False), CompileCounter(), limits_reached()
    scorer.compile(backend=counter)
    for width in range(1, trim.SHAPES + 1):
        step(scorer, 8 * width, 0)
        validate(scorer, 8 * width)
    assert counter.frame_count == 2 * trim.SHAPES and limits_reached() == before


def test_torch_giving_up_is_said_once(capsys):
    torch._dynamo.reset()
    scorer, watch, trainer = denoiser(tiny("llama").train(), "block", 4, False), CompilerWatch(), SimpleNamespace()
    scorer.compile(backend="eager")
    watch.on_train_start(trainer, None)
    with torch._dynamo.config.patch(recompile_limit=2):
        for trainer.global_step in range(1, 6):
            step(scorer, 8 * trainer.global_step, 0)
            watch.on_train_batch_end(trainer, None)
    said = [line for line in capsys.readouterr().err.splitlines() if "layers run uncompiled" in line]
    assert len(said) == 1 and said[0].startswith("from step 3 on")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_layers_are_compiled_for_all_shapes_in_the_first_step_where_padding_costs(architecture):
    """On CPUs. Nothing is padded, and the last layer's MLP still leaves out what nobody reads."""
    torch._dynamo.reset()
    shapes = [(64, 0), (64, 1), (96, 2), (48, 3)]
    scorer = denoiser(tiny(architecture).train(), "block", 4, False)
    counter = CompileCounterWithBackend("aot_eager")
    plain = [step(scorer, *shape, rows=3) for shape in shapes]
    scorer.compile(few_shapes=False, backend=counter)
    assert not scorer.compiles
    assert_same([step(scorer, *shapes[0], rows=3)], plain[:1])
    first = counter.frame_count
    assert_same([step(scorer, *shape, rows=3) for shape in shapes[1:]], plain[1:])
    assert 0 < first == counter.frame_count
    step(scorer, 64, 0, rows=1)
    prepared = prepare(scorer, Uniform(), random_batch(3, 64), generator(0))
    with torch.inference_mode():
        scorer.eval()(prepared.inputs)
    assert counter.frame_count <= 2 * first, "a single row and validation have versions of their own, of eight in all"
    assert scorer.last_layer.rows(prepared.inputs) is not None


def test_a_model_without_layers_that_can_be_compiled_is_refused(monkeypatch, llama):
    scorer = denoiser(llama, "block", 4, False)
    monkeypatch.setattr("dlm.model.denoiser.GradientCheckpointingLayer", dict)
    with pytest.raises(ValueError, match="compile=true finds no layers in LlamaForCausalLM: set it to false"):
        scorer.compile()
