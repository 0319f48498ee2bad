"""What training refuses: every bad input is named with its remedy before compute is spent."""

import re

import pytest
from common import LIGHT_EVALUATION, config, one_in, options
from hydra.errors import HydraException
from small_runs import small

from dlm.conversion.module import Conversion
from dlm.runs.run import Run
from dlm.train import train

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("short_prose")]


def test_a_decoding_that_cannot_read_the_model_is_refused_before_training(runs_dir, monkeypatch):
    monkeypatch.setattr(Conversion, "training_step", lambda *_: pytest.fail("compute was spent"))
    with pytest.raises(ValueError, match="an approximate cache is for attention that cannot be cached"):
        train(small(runs_dir, *LIGHT_EVALUATION, "attention=block", "decoding=dual_cache"))


BAD = {
    "runtime.strategy=fsdp": "runtime.strategy 'fsdp' is unknown: choose auto, ddp or fsdp2",
    "block_size=7": "block_size 7 must divide data.length 64: choose one of 1, 2, 4, 8, 16, 32, 64",
    "block_size=0": "block_size 0 must be at least 1",
    "block_size=-4": "block_size -4 must be at least 1",
    "model.path=./nowhere": "does not exist: give a hub id or an existing folder",
    "masking.t_min=0.7 masking.t_max=0.3": "masking.t_min 0.7 and masking.t_max 0.3 must satisfy",
    "masking.half_life=0": "masking.half_life 0 must be > 0",
    "masking.half_life=-1": "masking.half_life -1 must be > 0",
    "masking.views=0": "masking.views 0 must be at least 1",
    "attention=ar token_shift=true masking.views=2": "masking.views 2 needs a noisy stream to hide tokens in",
    "masking.count=some": "masking.count 'some' is unknown: choose one of exact, bernoulli, ceil",
    "masking.count=16": "masking.count 16 must be a name",
    "attention=ar token_shift=false": "attention=ar scores token i from position i-1: set token_shift=true",
    "model.mask_token=nothing": "model.mask_token 'nothing' is not in the vocabulary of 1024 tokens",
    "tokens=100": "tokens 100 is less than one optimizer step of 256 tokens",
    "lr=0": "lr 0 must be > 0",
    "lr=-0.1": "lr -0.1 must be > 0",
    "lr=nan": "lr nan must be a finite number: set lr=VALUE",
    "tokens=many": "tokens 'many' must be a finite number",
    "seed=inf": "seed inf must be a whole number",
    "trainer.compile=maybe": "trainer.compile 'maybe' must be true or false",
    "runtime.memory_gb=lots": "runtime.memory_gb 'lots' must be a finite number",
    "runtime.memory_gb=0.001": "not even data.batch_size=1 does",
    "seed=-1": "seed -1 must be a whole number of at least 0",
    "token_shift=1": "token_shift 1 must be true or false",
    "block_size=0.5": "block_size 0.5 must be a whole number",
    "trainer.accumulate=0": "trainer.accumulate 0 must be a whole number of at least 1",
    "runtime.val_every=null": "runtime.val_every None must be a whole number of at least 1",
    "data.batch_size=0": "data.batch_size 0",
    "data=text data.path=/nowhere.txt data.length=64 data.batch_size=4": "does not exist: name a file that does",
    "trainable=lora trainable.rank=0": "trainable.rank 0 must be at least 1",
    "decoding=threshold decoding.threshold=-1": "decoding.threshold -1 must be >= 0",
    "+decoding.top_p=0": "decoding.top_p 0",
    "data=text data.path=a.jsonl data.field=[a,b]": "data.field ['a', 'b'] must be a name: set data.field=VALUE",
    "data.mixture.prose=much": "data.mixture {'tasks': 0.7, 'prose': 'much'} must be a mapping to a finite number",
    "masking.half_life=nan": "masking.half_life nan must be a finite number: set masking.half_life=VALUE",
    "optimizer.betas=[0.9]": "optimizer.betas [0.9] must be a list of a finite number and a finite number",
    "schedule={masking.t_max:1}": "schedule {'masking.t_max': 1} must be a mapping to a mapping",
}


@pytest.mark.parametrize("overrides", one_in(3, BAD))
def test_bad_input_is_named_with_its_remedy_before_any_training(overrides, runs_dir, monkeypatch):
    monkeypatch.setattr(Conversion, "training_step", lambda *_: pytest.fail("compute was spent"))
    with pytest.raises(ValueError, match=re.escape(BAD[overrides])):
        train(small(runs_dir, *overrides.split()))
    failed = [Run(p.parent) for p in runs_dir.glob("*/run.json")]
    assert [run.status for run in failed] == ["failed"] and BAD[overrides] in failed[0].record["error"]
    assert not failed[0].model_folder.exists()


@pytest.mark.parametrize("override", ["evaluation.batch_size=1.5", "force=1", "retry=maybe"])
def test_what_is_no_part_of_a_run_is_refused_before_there_is_one(override, runs_dir):
    with pytest.raises(ValueError, match=rf"^{override.partition('=')[0]} .* must be "):
        train(small(runs_dir, "evaluation=full", override))
    assert not runs_dir.exists()


def test_an_unknown_pattern_lists_the_options():
    with pytest.raises(HydraException) as error:
        config("attention=causal")
    assert all(option in str(error.value) for option in options("attention"))
