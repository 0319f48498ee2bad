"""`dlm.load`: a run and the folder that was exported of it are one model, and `import dlm` costs nothing."""

import json
import subprocess
import sys

import pytest
import torch
from common import ROOT, config, everyday

import dlm
from dlm.config.build import make
from dlm.config.finished import opened
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.export import export
from dlm.model.parent import new_parent
from dlm.runs.run import Run

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "initializer_range": 0.3}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MODELS = {"llama": {"model_type": "llama"}, "gemma3": {"model_type": "gemma3_text"} | SLIDING}
CASES = {
    "block": ("llama", ["attention=block", "token_shift=true"]),
    "bidir": ("llama", ["attention=bidir", "attention.canvas=block", "token_shift=false"]),
    "sliding": ("gemma3", ["attention=block_noisy", "token_shift=true", "decoding=fixed"]),
}


def run_of(case: str, folder) -> Run:
    """The folder that a finished training of a small random model leaves."""
    architecture, overrides = CASES[case]
    run = Run.create(config(f"runs_dir={folder}", "block_size=8", *overrides), {})
    parent = new_parent(SHAPE | MODELS[architecture], "pkg://dlm/assets/tiny", 0, check=False)
    parent.model.save_pretrained(run.model_folder)
    parent.tokenizer.save_pretrained(run.model_folder)
    run.seal("model")
    run.update(status="finished", parent={"source": "random", "fingerprint": ""})
    return run


@pytest.mark.trains
@pytest.mark.parametrize("case", everyday(CASES))
def test_a_run_and_the_folder_that_was_exported_of_it_decode_the_same(case, tmp_path):
    run = run_of(case, tmp_path / "runs")
    folder = export(run, tmp_path / "exported")
    request = [[5, 6, 7], list(range(9, 30))]
    answers = []
    for name in (run.id, str(folder)):
        denoiser, tokenizer, decoder = dlm.load(name, tmp_path / "runs", "cpu")
        assert tokenizer.mask_token_id == denoiser.mask_id and denoiser.pattern.block_size == 8
        answers.append([(g.tokens, g.nfe) for g in decoder.generate(denoiser, Request(request, 24, [0]))])
    assert answers[0] == answers[1]


def test_an_exported_folder_keeps_the_weights_pattern_shift_and_commit_rule_of_its_run(tmp_path):
    run = run_of("bidir", tmp_path / "runs")
    ours, theirs = (opened(str(name), "", "cpu") for name in (run.folder, export(run, tmp_path / "to", 0.7)))
    pairs = zip(ours.dlm.model.state_dict().values(), theirs.dlm.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert theirs.dlm.pattern == make(run.config.attention).__class__(8, 32, "block")
    assert not theirs.dlm.token_shift and theirs.decoder.threshold == 0.7
    third = opened(
        str(export(run, tmp_path / "fixed", None, {"_target_": "dlm.decoding.fixed.Fixed", "tokens_per_step": 3})), ""
    )
    assert isinstance(third.decoder, Fixed) and third.decoder.rule.tokens_per_step == 3


def test_what_is_neither_a_run_nor_an_exported_folder_is_refused_with_what_there_is(tmp_path, finished_run):
    with pytest.raises(ValueError, match=f"run 'nothing' does not exist in .*choose one of {finished_run.id}"):
        dlm.load("nothing", finished_run.folder.parent)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "block_diffusion_llama", "block_size": 8}))
    with pytest.raises(ValueError, match=r"lacks attention_pattern, .*: export the run again"):
        dlm.load(str(tmp_path))
    own = {"attention_pattern": "mine", "block_size": 8, "whole_canvas": True, "token_shift": True}
    own |= {"model_type": "block_diffusion_llama", "threshold": 0.9, "tokens_per_step": None}
    (tmp_path / "config.json").write_text(json.dumps(own))
    with pytest.raises(ValueError, match=r"attention/mine\.yaml, which is in no conf/: add it to one here"):
        assert opened(str(tmp_path), "").pattern
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON .*: export the run again"):
        dlm.load(str(tmp_path))


@pytest.mark.trains
def test_importing_the_package_imports_nothing_heavy():
    program = (
        "import dlm, sys; print(sorted({'torch', 'transformers', 'hydra'} & set(sys.modules)), dlm.load.__doc__[:9])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[] A finishe\n", done.stderr
