"""The embedded vision-language parent: it reads its scenes, and only by seeing them."""

import pytest
import torch
from conftest import ROOT

from dlm.config.build import ar_denoiser
from dlm.data import tasks
from dlm.data.scenes.rows import Scenes
from dlm.decoding.fixed import Fixed
from dlm.evaluation.generation import run_tasks
from dlm.model.parent import load_parent

FOLDER = ROOT / "dlm" / "assets" / "vlm"


@pytest.fixture(scope="module")
def parent():
    return load_parent("pkg://dlm/assets/vlm", attn_implementation="sdpa")


@pytest.fixture(scope="module")
def questions():
    return tasks.evaluation_set("test", 4, families=Scenes.asked)


def test_it_answers_its_questions(parent, questions):
    answered = run_tasks(ar_denoiser(parent), parent.reader, questions, Fixed(1), 56, len(questions))
    assert answered["correct"].mean() > 0.9 and set(answered["family"]) == {"list", "grid", "count", "at", "words"}


def test_without_the_picture_it_answers_none(parent, questions, monkeypatch):
    monkeypatch.setattr(
        type(parent.model.model.vision_tower), "forward", lambda self, pixel_values, **_: blank(self, pixel_values)
    )
    answered = run_tasks(ar_denoiser(parent), parent.reader, questions, Fixed(1), 56, len(questions))
    assert answered["correct"].sum() == 0


def blank(tower, pixel_values):
    """What a tower gives that sees nothing."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    states = torch.zeros(len(pixel_values), 16, tower.config.hidden_size)
    return BaseModelOutputWithPooling(last_hidden_state=states, hidden_states=(states,) * 4)


def test_its_weights_are_small_and_its_card_names_no_folder_of_a_machine():
    assert (FOLDER / "model.safetensors").stat().st_size < 10_000_000
    texts = [path.read_text(encoding="utf-8") for path in FOLDER.iterdir() if path.suffix in (".json", ".md", ".jinja")]
    assert len(texts) >= 5 and not any("/work" in text or "/tmp" in text for text in texts)
