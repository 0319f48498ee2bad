"""What `python -m dlm.benchmark` counts and what it compares with: closed forms, and the naive decoding loop."""

import pytest
import torch
from common import ARCHITECTURES, MASK_ID, denoiser, random_batch, tiny
from workbenches import losses_of, workbench

from dlm.bench import decode, engines, naive, train
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.model import flops
from dlm.model.layers import layer_types
from dlm.model.trim import needed
from dlm.types import Noised, generator


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_closed_form_is_what_the_counter_counts(architecture):
    model = tiny(architecture)
    bench, task, case, losses = losses_of(model)
    shape, rows, length = flops.Shape.of(model), 2 * case.x0.numel(), 2 * task.length
    counts = {name: task.counts(bench, case, name, task.arm(bench, name, loss)) for name, loss in losses.items()}

    def total(name):
        """Without the rotary angles, which older versions of transformers make by a product of matrices."""
        positions = 24 if name == train.AR else counts[name]["rows_network"]  # AR has the same in both rows
        angles = flops.executed(lambda: model.model.rotary_emb(torch.zeros(1), torch.arange(positions)[None]))["linear"]
        return sum(counts[name]["flop_executed"].values()) - angles

    assert total(train.NAIVE) == flops.plain_step(shape, rows, rows * length, rows)
    assert total(train.AR) == flops.plain_step(shape, 48, 2 * 24 * 25 // 2, 48) == counts[train.AR]["flop_useful"]
    assert counts[train.NAIVE]["flop_useful"] == counts[train.OURS]["flop_useful"] <= total(train.OURS)
    shorter = case.prepared.inputs.input_ids.shape[1]
    mine, masked = counts[train.OURS]["rows_network"], int(case.masked.sum())
    mlp = sum(p.numel() for p in model.model.layers[-1].mlp.parameters())  # works on what is read alone
    saved = flops.LINEAR * (mine - masked) * mlp
    assert total(train.OURS) == flops.plain_step(shape, mine, mine * shorter, masked) - saved < total(train.NAIVE)
    assert (counts[train.NAIVE]["rows_network"], counts[train.NAIVE]["rows_head"]) == (rows, rows)
    assert counts[train.OURS]["rows_head"] == int(case.masked.sum())
    assert counts[train.NAIVE]["logits_bytes"] == rows * 61 * 8


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("token_shift", [False, True])
def test_needed_rows_and_pairs_are_those_of_the_predicate(llama, token_shift, views):
    scorer = denoiser(llama, "block", 4, token_shift)
    batch = scorer.scorable(random_batch(3, 24))
    masked = torch.rand(3, views * 24, generator=generator(3)) < 0.3
    masked &= batch.maskable.repeat(1, views)
    masked[0, 16:24] = False
    inputs, _ = scorer.inputs(batch, Noised(batch.x0.repeat(1, views), masked, masked.float()))
    kept, rows = needed(inputs), inputs.rows
    visible = scorer.pattern.visible(rows[:, :, None], rows[:, None, :])
    scoring = inputs.scored.unique()  # views may share a clean row that scores the first token of a block
    pairs, last = (visible & kept[:, :, None]).sum(), visible.flatten(0, 1)[scoring].sum()
    found = flops.needed(masked.view(3, views, 24), 4, token_shift)
    assert found == flops.Needed(int(kept.sum()), int(pairs), len(scoring), int(last))


def test_a_step_whose_tokens_are_all_masked_needs_all_rows_but_the_last_clean_block():
    found = flops.needed(torch.ones(1, 1, 64, dtype=torch.bool), 16, False)
    assert found == flops.Needed(2 * 64 - 16, 64**2, 64, 64 * 16 + 64 * 48 // 2)


def test_the_useful_work_of_a_known_model():
    """Qwen2.5-1.5B, L 4096, block 16, half of the tokens masked: by hand 75.3e12 FLOP, 1.75 steps of AR."""
    linear = 2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960
    shape = flops.Shape(layers=28, linear=linear, key_value=2 * 1536 * 256, width=1536, head=151936 * 1536)
    masked = (torch.arange(4096) % 2 == 0)[None, None]
    ours = flops.diffusion_step(shape, flops.needed(masked, 16, False))
    parent = flops.plain_step(shape, 4096, 4096 * 4097 // 2, 4096)
    assert parent == pytest.approx(43.0e12, rel=2e-3)
    assert ours == pytest.approx(75.3e12, rel=2e-3) and ours / parent == pytest.approx(1.75, abs=0.01)


def test_a_shape_without_a_closed_form_is_left_out():
    assert flops.Shape.of(tiny("llama")).layers == 3
    model = tiny("llama")
    model.extra = torch.nn.Parameter(torch.zeros(2, 3))
    assert flops.Shape.of(model) is None
    bench, task, case, _ = losses_of(tiny("mistral"))  # windows of 6
    assert task.useful(bench, case, train.OURS) is None


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("block_size", [4, 8])
def test_the_naive_loop_gives_the_engines_tokens_and_a_forward_more_per_block(model, block_size, k, token_shift):
    prompt = random_batch(3, 16).x0
    scorer = denoiser(model, "block", block_size, token_shift)
    made = Fixed(k).generate(scorer, Request(prompt.tolist(), 16, None))
    calls = []
    hook = model.get_decoder().register_forward_pre_hook(lambda *args: calls.append(1))
    got = naive.decode(model, layer_types(model), prompt, 16, MASK_ID, block_size, k, token_shift)
    hook.remove()
    assert got.tolist() == [g.tokens for g in made]
    if not token_shift:  # with it a row may need one step fewer
        assert {g.nfe for g in made} == {16 // k} and len(calls) == 1 + 16 // k + 16 // block_size


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_ar_by_the_engine_is_hugging_faces_generate_and_goes_on_after_eos(architecture):
    model = tiny(architecture)
    bench = workbench(model)
    ways = engines.engines(bench, bench.ids(4, 8), 8, 2, 24)
    kept = model.generation_config
    with decode.ignoring_eos(model):
        theirs, ours = (decode.run(bench, name, ways[name]) for name in (decode.HF, decode.OURS_AR))
        assert torch.equal(theirs.tokens, ours.tokens)
        assert theirs.forwards == ours.forwards == 24
    assert ours.tokens.shape == (4, 24) and MASK_ID not in ours.tokens
    assert model.generation_config is kept


def test_bytes_of_a_forward_by_hand():
    model = tiny("qwen3", torch.bfloat16)
    everything, embedding = sum(p.numel() for p in model.parameters()) * 2, 61 * 32 * 2
    assert decode.weight_bytes(model) == everything - embedding
    assert decode.cache_bytes_per_token(model) == 2 * 3 * 2 * 16 * 2


def test_rates_by_hand(llama):
    bench = workbench(llama, peak_bandwidth_gbs=1.0)
    task = decode.Decode(8, 8, [2], [4], [2])
    point = {"batch_size": 2, "block_size": 4, "seconds": {n: [0.2, 0.4] for n in (decode.OURS, decode.NAIVE)}}
    point["seconds"][decode.HF] = [0.4, 0.4]
    found = task.summary(bench, decode.OURS, point, forwards=4, per_forward=0.3 / 4)
    assert found["tokens_per_forward"] == 2 and found["tokens_per_second"] == pytest.approx(16 / 0.3)
    assert found["ms_per_forward"] == pytest.approx(75)
    assert found["speed_over_hf"] == {"median": 1.5, "min": 1.0, "max": 2.0}
    read = found["weight_bytes_per_forward"] + found["cache_bytes_per_forward"]
    assert found["cache_bytes_per_forward"] == 2 * 14 * decode.cache_bytes_per_token(llama)  # 12 and 16 columns
    assert found["fraction_of_bandwidth"] == pytest.approx(read / 1e9 / 0.075)
