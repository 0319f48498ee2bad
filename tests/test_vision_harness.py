"""Benchmarks about pictures: a local task of rendered scenes is answered as our own evaluation answers them."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from common import ROOT, config
from omegaconf import OmegaConf
from PIL import Image
from transformers import AutoProcessor

from dlm import evaluate
from dlm.config.finished import opened
from dlm.config.settings import Harness
from dlm.data import tasks
from dlm.data.picture_files import file_of
from dlm.data.scenes.rows import Scenes, picture_of
from dlm.evaluation.generation import accuracy, run_tasks
from dlm.export import export
from dlm.harness.benchmarks import benchmark
from dlm.runs.run import Run

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from dlm.harness.model import DiffusionLM
from dlm.harness.questions import Question

NEW = 24
TASK = """
task: {name}
custom_dataset: !function items.scenes
output_type: {kind}
test_split: test
doc_to_text: {text}
doc_to_image: {image}
doc_to_target: "{{{{target}}}}"
target_delimiter: ""
{more}
num_fewshot: 0
metadata: {{version: 1.0}}
"""
GENERATION = {
    "kind": "generate_until",
    "more": f'generation_kwargs: {{until: ["<never>"], do_sample: false, max_gen_toks: {NEW}}}\n'
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]",
}
CHOICE = {"kind": "multiple_choice", "more": 'doc_to_choice: ["A", "B"]'}
ITEMS = """
import json
from pathlib import Path
from PIL import Image
from datasets import Dataset

def scenes(**metadata):
    folder = Path(__file__).parent
    items = json.loads((folder / "items.json").read_text())
    pictures = [Image.open(folder / item.pop("file")) for item in items]
    return {"test": Dataset.from_list([item | {"picture": p} for item, p in zip(items, pictures)])}
"""
KINDS = {
    "scenes": {"text": '"{{prompt}}"', "image": "[picture]"} | GENERATION,
    "placed": {"text": '"<image>{{prompt}}"', "image": "picture"} | GENERATION,
    "chosen": {"text": '"{{prompt}}"', "image": "[picture]"} | CHOICE,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run whose dLM has the weights of the embedded vision-language parent and decodes as it, and local
    tasks about scenes."""
    folder = tmp_path_factory.mktemp("vision")
    overrides = ["attention=block", "block_size=1", "token_shift=true"]
    run = Run.create(config(f"runs_dir={folder / 'runs'}", "model=tiny_vlm", "data=scenes", *overrides), {})
    shutil.copytree(ROOT / "dlm" / "assets" / "vlm", run.model_folder)
    run.seal("model")
    run.update(status="finished", parent={"source": "vlm", "fingerprint": ""})
    (folder / "tasks").mkdir()
    (folder / "tasks" / "items.py").write_text(ITEMS)
    for name, kind in KINDS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, **kind))
    items = []
    for n, scene in enumerate(examples()):
        picture_of(scene.image).save(folder / "tasks" / f"{n}.png")
        items.append({"prompt": scene.prompt, "target": scene.answer, "file": f"{n}.png"})
    (folder / "tasks" / "items.json").write_text(json.dumps(items))
    return folder


def examples():
    return tasks.evaluation_set("test", 1, families=Scenes.asked)


def settings(folder, **values) -> Harness:
    yaml = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "evaluate.yaml").harness)
    return Harness(**yaml | {"include": str(folder / "tasks")} | values)


def asked(folder, out, *names, **values):
    """What the harness finds of the run."""
    found = opened(str(Run.newest(folder / "runs").folder), "", "cpu")
    return found, benchmark(found, found.decoding, names, settings(folder, **values), False, out)


@pytest.mark.trains
def test_the_score_and_the_forwards_of_a_task_about_pictures_are_our_own(folder, tmp_path):
    found, scores = asked(folder, tmp_path, "scenes")
    ours = accuracy(run_tasks(found.dlm, found.converted.reader, examples(), found.decoder, NEW, 16))
    theirs = scores["dlm"]["scenes"]
    assert (theirs["metrics"]["exact_match,none"], theirs["n"]) == (ours["accuracy"], ours["n"])
    assert (theirs["nfe"], theirs["tpf"]) == (pytest.approx(ours["nfe"]), pytest.approx(ours["tpf"]))
    assert 0 < ours["accuracy"] < 1  # the numbers say something: some answers are longer


@pytest.mark.slow
def test_a_picture_stands_where_the_text_says_in_a_conversation_of_the_harness_and_in_ours(folder, tmp_path):
    _, ours = asked(folder, tmp_path / "ours", "placed")
    _, theirs = asked(folder, tmp_path / "theirs", "placed", chat_template=True)
    metrics = [scores["dlm"]["placed"]["metrics"] for scores in (ours, theirs)]
    assert metrics[0] == metrics[1] and metrics[0]["exact_match,none"] > 0


def test_another_picture_is_another_question():
    pictures = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "red")]
    contents = [Question.of(request("list:", [picture])).content for picture in pictures]
    assert contents[0] == contents[2] != contents[1]
    assert Question.of(Instance("generate_until", {}, ("list:", {}), 0, ("t", 0, 1))).content == {"prompt": "list:"}


def request(text: str, visual: list, **beside) -> Instance:
    return Instance("generate_until", {}, (text, {"until": []}, {"visual": visual} | beside), 0, ("t", 0, 1))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (request("list:", ["none.png"]), "task t shows 'none.png', a missing picture"),
        (request("list:", [], audio=[1]), "task t comes with audio: choose one of pictures"),
        (
            request("<image><image>list:", [Image.new("RGB", (4, 4))]),
            r"task t asks with more or fewer pictures than places for them \(1 for 2\)",
        ),
    ],
)
def test_a_question_that_cannot_be_shown_is_refused_with_its_task(made, message):
    processor = AutoProcessor.from_pretrained(ROOT / "dlm" / "assets" / "vlm")
    with pytest.raises(ValueError, match=message):
        Question.of(made).encoded(processor, False)


def test_tasks_that_this_model_cannot_answer_are_refused_before_anything_is_decoded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(DiffusionLM, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="task chosen scores given answers about pictures, which is not to be had"):
        asked(folder, tmp_path, "chosen")
    monkeypatch.setattr("dlm.model.parent.load_processor", lambda *_: None)
    with pytest.raises(ValueError, match="task scenes has pictures, and the parent reads text only"):
        asked(folder, tmp_path, "scenes")


@pytest.mark.slow
def test_a_conversation_of_the_harness_without_a_place_for_its_picture_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="shows 1 pictures, and its conversation has 0 places"):
        asked(folder, tmp_path, "scenes", chat_template=True)


@pytest.mark.slow
def test_the_command_asks_a_run_and_the_folder_that_was_exported_of_it(folder, tmp_path, call):
    run, include = Run.newest(folder / "runs"), f"harness.include={folder / 'tasks'}"
    code, said, error = call(
        evaluate.main, f"run={run.id}", f"runs_dir={folder / 'runs'}", "tasks=scenes", include, "device=cpu"
    )
    assert code == 0 and re.search(r"scenes .*exact_match.* dlm", said), error
    exported = export(run, tmp_path / "exported")
    code, _, error = call(evaluate.main, f"run={exported}", "tasks=scenes", include, "device=cpu")
    again = json.loads((exported / "benchmarks" / "results.json").read_text())["dlm"]["scenes"]
    score = run.record["benchmarks"]["dlm"]["scenes"]
    assert code == 0 and (again["metrics"], again["nfe"]) == (score["metrics"], score["nfe"]), error


@pytest.mark.parametrize("mode", ["CMYK", "F", "HSV", "RGBA"])
def test_a_picture_of_pillow_is_read_whatever_its_mode(mode):
    assert Image.open(io.BytesIO(file_of(Image.new(mode, (4, 4)), Path()))).size == (4, 4)
