"""What ends an answer: the tokenizer's EOS, and whatever else the parent's generation config names."""

import json
import shutil

import pytest
import torch
from common import config
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from dlm.config.build import ar_denoiser
from dlm.config.values import evaluation_of
from dlm.data.example import Example
from dlm.decoding.fixed import Fixed
from dlm.evaluation.generation import run_tasks
from dlm.evaluation.suite import parent_settings
from dlm.model.eos import eos_ids
from dlm.model.parent import load_parent
from dlm.runs.digest import FILE_DIGITS, digest
from dlm.watch.speaker import Speaker

TINY = "dlm/assets/tiny"
PROMPT = "reverse:ABCDEFG="


@pytest.fixture
def folder(tmp_path):
    """The embedded parent, which is to stop at D as well."""
    target = shutil.copytree(TINY, tmp_path / "parent")
    letter = AutoTokenizer.from_pretrained(TINY).convert_tokens_to_ids("D")
    values = json.loads((target / "generation_config.json").read_text()) | {"eos_token_id": [letter, 0]}
    (target / "generation_config.json").write_text(json.dumps(values))
    return target


def test_the_tokenizers_eos_comes_first_and_no_id_twice(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    letter = tokenizer.convert_tokens_to_ids("D")
    for named, expected in (([letter, 0], [0, letter]), (letter, [0, letter]), (0, [0]), (None, [0])):
        model.generation_config = GenerationConfig(eos_token_id=named)
        assert eos_ids(model, tokenizer) == expected


def test_the_parent_stops_where_hugging_face_stops(folder):
    parent = load_parent(str(folder), check=False)
    ids = parent.tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = parent.model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :].tolist()
    assert parent.tokenizer.decode(theirs) == "GFED"
    ar = ar_denoiser(parent)
    answer = Speaker("parent", ar, parent.tokenizer, Fixed(1)).answer(ids[0].tolist(), 16, [], 0)
    assert answer.generation.tokens == theirs and answer.text == "GFED"
    (row,) = run_tasks(ar, parent.tokenizer, [Example("reverse", PROMPT, "GFED")], Fixed(1), 16, 1).itertuples()
    assert row.output == "GFED" and row.tokens == 4 and not row.endless


def test_a_saved_model_keeps_them(folder, tmp_path):
    parent = load_parent(str(folder), check=False)
    parent.model.save_pretrained(tmp_path / "run")
    parent.tokenizer.save_pretrained(tmp_path / "run")
    again = load_parent(str(tmp_path / "run"), check=False)
    assert eos_ids(again.model, again.tokenizer) == eos_ids(parent.model, parent.tokenizer) != [0]


def test_what_was_measured_of_a_parent_with_one_end_does_not_serve_one_with_two():
    """And that of the embedded parent keeps the name it had."""
    cfg = config("evaluation=full", "data=embedded")
    settings = evaluation_of(cfg.evaluation, cfg.data)
    assert parent_settings(settings, [0]) != parent_settings(settings, [0, 5]) != parent_settings(settings, [0, 6])
    assert digest(parent_settings(settings, [0]), FILE_DIGITS) == "5d2bc5f4"
