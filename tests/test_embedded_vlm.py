"""The embedded vision-language parent: it reads its scenes, and only by seeing them."""

import pytest
import torch
from common import ROOT
from safetensors.torch import load_file
from small_runs import small, weights
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dlm.config.build import ar_denoiser
from dlm.data import tasks
from dlm.data.scenes.rows import Scenes
from dlm.decoding.fixed import Fixed
from dlm.evaluation.generation import run_tasks
from dlm.model.compose import load_composed
from dlm.model.parent import load_parent
from dlm.runs.run import Run
from dlm.train import train

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
    states = torch.zeros(len(pixel_values), 16, tower.config.hidden_size)
    return BaseModelOutputWithPooling(last_hidden_state=states, hidden_states=(states,) * 4)


def test_its_weights_are_small_and_its_card_names_no_folder_of_a_machine():
    assert (FOLDER / "model.safetensors").stat().st_size < 10_000_000
    texts = [path.read_text(encoding="utf-8") for path in FOLDER.iterdir() if path.suffix in (".json", ".md", ".jinja")]
    assert len(texts) >= 5 and not any("/work" in text or "/tmp" in text for text in texts)


SCENES = ("recipe=none", "model=tiny_vlm", "data=scenes", "data.length=128", "tokens=2048")
FEW = (
    "evaluation=scenes",
    "evaluation.tasks_per_family=1",
    "evaluation.tpf_targets=[]",
    "evaluation.max_new_tokens=24",
    "evaluation.likelihood_rows=2",
    "evaluation.likelihood_samples=1",
    "evaluation.length=64",
    "evaluation.cloze_items=2",
    "evaluation.throughput_prompts=5",
    "evaluation.throughput_repeats=1",
)


@pytest.mark.slow
@pytest.mark.trains
@pytest.mark.usefixtures("short_prose")
def test_a_conversion_trains_the_tower_and_its_record_has_every_family_beside_the_parent(tmp_path):
    result = train(small(tmp_path, *SCENES, "recipe=diffusionvl", "optimizer.vision_lr=2e-4", *FEW))
    run = Run.load(result["id"], tmp_path)
    parent, converted = (run.record["evaluation"][name]["generation"][0] for name in ("parent", "dlm"))
    assert set(parent["families"]) == set(converted["families"]) == {"list", "grid", "count", "at", "words"}
    assert parent["accuracy"] > converted["accuracy"] and parent["tpf"] == 1
    assert run.record["train"]["val/nelbo_final"] < 8
    assert moved(tmp_path, result) == {"vision_tower", "multi_modal_projector", "language_model"}
    assert (run.model_folder / "processor_config.json").is_file()


@pytest.mark.trains
def test_the_first_stage_from_a_language_model_moves_the_connector_alone(tmp_path):
    first = ("recipe=none", "model=composed", "attention=ar", "token_shift=true", "trainable=connector")
    result = train(small(tmp_path, *SCENES, *first))
    before = load_composed("pkg://dlm/assets/long", "pkg://dlm/assets/vlm").model.state_dict()
    after = load_parent(str(Run.load(result["id"], tmp_path).model_folder), check=False).model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed and all("multi_modal_projector" in name for name in changed)


def moved(runs_dir, result) -> set[str]:
    """The parts of the embedded parent that a run has changed."""
    before = load_file(FOLDER / "model.safetensors")
    return {
        part
        for name, tensor in weights(runs_dir, result).items()
        for part in ("vision_tower", "multi_modal_projector", "language_model")
        if part in name and not torch.equal(tensor, before[name])
    }
