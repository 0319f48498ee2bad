"""The longest row of every forward against the model's positions: what fits works, one more is refused by name."""

import pytest
import torch
from common import SHAPE, config, denoiser, random_batch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dlm.config.build import build, make
from dlm.conversion.module import Conversion
from dlm.data import tasks
from dlm.decoding.engine.request import Request
from dlm.evaluation.generation import prompt_ids
from dlm.evaluation.longest import require_evaluable
from dlm.model.positions import num_positions, require_positions
from dlm.train import train
from dlm.types import Noised
from dlm.watch.speaker import Speaker

TINY = "dlm/assets/tiny"
LIMIT = 62  # five blocks of 12, and two positions that are in none
LEARNED, ROTARY = ("gpt2", "opt"), ("llama", "gemma3_text")
# For each kind of loop, the longest prompt that two more tokens fit behind: whole blocks of the grid, whole windows
# that begin at the last token (of 12, or a draft of 10 and its successor), single tokens.
LONGEST_PROMPT = dict.fromkeys(["threshold", "prefix_cache", "dual_cache", "soft", "pipelined", "oracle"], 58)
LONGEST_PROMPT |= {"prefix": 49, "self_speculative": 49, "lookup": 50, "ar": 60}


def model_with(positions, architecture="gpt2", **values):
    torch.manual_seed(0)
    shape = SHAPE | {"max_position_embeddings": positions, "head_dim": 8, "word_embed_proj_dim": 32, "ffn_dim": 48}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **shape | values))
    made.set_attn_implementation("sdpa")
    return made.eval()


@pytest.fixture
def parent(tmp_path):
    """The folder of a GPT-2 of 64 positions."""
    model_with(64, vocab_size=1024).save_pretrained(tmp_path / "parent")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "parent")
    return tmp_path / "parent"


def masked_loss(scorer, length):
    batch = random_batch(1, length)
    inputs, _ = scorer.inputs(batch, Noised(batch.x0, batch.maskable, batch.maskable.float()))
    return scorer(inputs)


@pytest.mark.parametrize("architecture", LEARNED + ROTARY)
@torch.no_grad()
def test_a_row_as_long_as_the_positions_is_read_and_a_longer_one_refused(architecture):
    model = model_with(48, architecture)
    assert num_positions(model.config) == 48
    scorer = denoiser(model, "block", 4, False)
    assert masked_loss(scorer, 48).shape[0] == 48
    with pytest.raises(ValueError, match="a row of 52 tokens exceeds the model's 48 positions: choose at most 48"):
        masked_loss(scorer, 52)


def test_a_model_without_a_limit_reads_rows_of_any_length():
    config = AutoConfig.for_model("bloom")  # ALiBi
    assert num_positions(config) is None
    require_positions(type("Model", (), {"config": config}), 10**9, "anything")


@pytest.mark.parametrize("name", LONGEST_PROMPT)
@torch.no_grad()
def test_every_loop_refuses_a_prompt_that_its_whole_blocks_have_no_positions_for(name):
    """59 tokens and two more fit into 62 positions; the block of 12 that they end in does not."""
    pattern = {"prefix": "block_token_causal", "prefix_cache": "bidir", "dual_cache": "bidir"}.get(name, "block")
    scorer, decoder = denoiser(model_with(LIMIT), pattern, 12, False), make(config(f"decoding={name}").decoding)
    longest = LONGEST_PROMPT[name]
    assert decoder.generate(scorer, Request([[5] * longest], 2))[0].tokens
    with pytest.raises(ValueError, match=f"exceeds the model's {LIMIT} positions: shorten the prompt or lower max_new"):
        decoder.generate(scorer, Request([[5], [5] * (longest + 1)], 2))


def test_a_command_line_prompt_is_measured_in_whole_blocks_too():
    scorer = denoiser(model_with(LIMIT, vocab_size=1024), "block", 12, False)
    speaker = Speaker("dLM", scorer, AutoTokenizer.from_pretrained(TINY), make(config("decoding=threshold").decoding))
    assert len(speaker.encode("A" * 59, 1)) == 59
    with pytest.raises(ValueError, match="the prompt's 61 tokens and max_new_tokens 1, 72 up to the end of a block,"):
        speaker.encode("A" * 61, 1)


def small(parent, *overrides):
    rows = ("tokens=512", "data.batch_size=2", "data.val_rows=2", "block_size=8", "scale=smoke", "logger=csv")
    return config(*rows, f"model.path={parent}", f"runs_dir={parent.parent}/runs", *overrides)


@pytest.mark.trains
def test_training_rows_beyond_the_positions_are_refused_by_the_options_name(parent):
    assert build(small(parent, "data.length=64")).num_steps == 4
    with pytest.raises(ValueError, match=r"data.length 128 exceeds the model's 64 positions: choose at most 64"):
        build(small(parent, "data.length=128"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("evaluation.length=96",), "evaluation.length 96 exceeds the model's 64 positions"),
        (("evaluation.max_new_tokens=60",), "evaluation.max_new_tokens 60 after a prompt of"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused_before_training(parent, overrides, message, monkeypatch):
    monkeypatch.setattr(Conversion, "training_step", lambda *_: pytest.fail("compute was spent"))
    with pytest.raises(ValueError, match=message):
        train(small(parent, "data.length=64", "evaluation.length=64", *overrides))


@torch.no_grad()
def test_the_longest_prompt_of_an_evaluation_decides():
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    longest = max(len(ids) for ids in prompt_ids(tokenizer, tasks.evaluation_set("test", 1)))
    scorer = denoiser(model_with(max(longest + 16, 48), vocab_size=1024), "block", 1, False)
    room = num_positions(scorer.model.config) - longest
    require_evaluable(scorer, tokenizer, 48, 1, room)
    with pytest.raises(ValueError, match="lower it, or set evaluation=none"):
        require_evaluable(scorer, tokenizer, 48, 1, room + 1)
