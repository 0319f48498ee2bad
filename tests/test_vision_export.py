"""The export of models that read images: the folder loads without us, keeps the processor, and decodes as our engine
does; `dlm.load` reads it as it reads the run."""

import json
import subprocess
import sys

import pytest
import torch
from common import MASK_ID, ROOT, config, everyday, pattern_of
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
from visions import END, FAMILIES, IMAGE, prompts, save_llava, seeing, vision

import dlm
from dlm.attention.block import Block
from dlm.attention.block_noisy import BlockNoisy
from dlm.data.pictures import processed, rendered
from dlm.decoding.engine.request import Request
from dlm.decoding.threshold import Threshold
from dlm.export import export
from dlm.format.base import Converted
from dlm.format.fast_dllm import FastDLLM
from dlm.format.hf import HF
from dlm.format.nemotron import Nemotron
from dlm.format.sdar import SDAR
from dlm.generate import main
from dlm.model.layers import layer_types
from dlm.model.parent import load_parent
from dlm.model.pictured import joined
from dlm.runs.run import Run
from dlm.trainable.lora import Lora

pytestmark = pytest.mark.trains

SIZE, NEW = 4, 11
# Text before an image, text behind it, and how many images; of the third, the image reaches into the answer's block.
SHAPES = [(3, 5, 1), (2, 3, 2), (4, 1, 1), (6, 2, 0)]
PART = "{{ '<image>' if part.type == 'image' else part.text }}"
TEMPLATE = f"{{% for m in messages %}}{{% for part in m.content %}}{PART}{{% endfor %}}{{% endfor %}}"
QUESTIONS = ["what?", "how many discs are there?"]


def exported(family: str, attention: str, shift: bool, folder):
    """The exported folder of a tiny random model, under a pattern, as plain transformers load it."""
    model, pattern = vision(family), ATTENTION[attention]
    model.save_pretrained(folder / "weights")
    settings = {
        "attention_windows": layer_types(model),
        "block_size": SIZE,
        "block_anchor": pattern.block_anchor.value,
        "cacheable": pattern.cacheable,
        "whole_canvas": pattern.whole_canvas,
        "clean_context": pattern.clean_stream,
        "noisy_stream": pattern.noisy_stream,
        "token_shift": shift,
        "mask_token_id": MASK_ID,
        "eos_token_id": 2,
        "threshold": 0.2,
        "tokens_per_step": None,
    }
    HF().write(Converted(folder / "weights", model, pattern, settings, False), folder / "out")
    return AutoModelForImageTextToText.from_pretrained(folder / "out", trust_remote_code=True, dtype=torch.float64)


ATTENTION = {"block": Block(SIZE), "noisy": BlockNoisy(SIZE), "bidir": pattern_of("bidir", SIZE)}
ATTENTION |= {"behind": Block(SIZE, block_anchor="prompt"), "noisy_behind": BlockNoisy(SIZE, block_anchor="prompt")}
CASES = [("llava", "block", False), ("qwen2_5_vl", "block", True), ("qwen3_vl", "behind", True)]
CASES += [("gemma3", "block", False), ("gemma3", "behind", False), ("llava", "noisy_behind", False)]
CASES += [("llava", "bidir", True), ("llava", "noisy", False)]
CASES += [(family, "block", True) for family in FAMILIES if family != "qwen2_5_vl"]


@pytest.mark.parametrize(("family", "pattern", "shift"), everyday(CASES, 3))
def test_the_exported_code_decodes_pictures_as_the_engine_does(family, pattern, shift, tmp_path):
    model = exported(family, pattern, shift, tmp_path)
    texts, images = prompts(family, SHAPES)
    request = Request(texts, NEW, 2, images=images)
    made = Threshold(0.2).generate(seeing(family, ATTENTION[pattern], shift), request)
    for text, seen, expected in zip(texts, images, made, strict=True):
        given = {"input_ids": torch.tensor([text])} if seen is None else joined([torch.tensor(text)], [seen])
        out = model.generate(**given, max_new_tokens=NEW, return_dict_in_generate=True)
        assert (out.sequences[0, len(text) :].tolist(), out.nfe.tolist()) == (expected.tokens, [expected.nfe])


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["block", "behind"])
def test_padding_beside_pictures_changes_no_token(attention, tmp_path):
    model, (texts, images) = exported("qwen2_5_vl", attention, False, tmp_path), prompts("qwen2_5_vl", SHAPES[:3])
    alone = [
        model.generate(**joined([torch.tensor(t)], [i]), max_new_tokens=NEW) for t, i in zip(texts, images, strict=True)
    ]
    width = max(map(len, texts))
    both = joined([torch.tensor([0] * (width - len(t)) + t) for t in texts], images)
    both["mm_token_type_ids"] = (both["input_ids"] == IMAGE).long()
    kept = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts])
    out = model.generate(**both, attention_mask=kept, max_new_tokens=NEW)
    for row, text, one in zip(out, texts, alone, strict=True):
        assert row[width:].tolist()[: one.shape[1] - len(text)] == one[0, len(text) :].tolist()


def test_the_tower_runs_once_for_an_answer(tmp_path, monkeypatch):
    model, (texts, images) = exported("llava", "block", False, tmp_path), prompts("llava", SHAPES[:1])
    seen = []
    model.model.vision_tower.register_forward_hook(lambda *_: seen.append(1))
    out = model.generate(
        **joined([torch.tensor(texts[0])], images), max_new_tokens=NEW, tokens_per_step=1, return_dict_in_generate=True
    )
    assert out.nfe.item() > 4 and len(seen) == 1


def test_image_tokens_without_images_are_refused(tmp_path):
    model = exported("llava", "block", False, tmp_path)
    with pytest.raises(ValueError, match=rf"input_ids hold image tokens \(id {IMAGE}\): give the pixel_values of the"):
        model.generate(torch.tensor([[5, IMAGE, END]]), max_new_tokens=2)


def test_videos_are_refused(tmp_path):
    model = exported("qwen2_5_vl", "block", False, tmp_path)
    with pytest.raises(ValueError, match="pixel_values_videos: videos are not read: give images"):
        model.generate(torch.tensor([[5, END]]), max_new_tokens=2, pixel_values_videos=torch.zeros(1))
    video = model.config.video_token_id
    with pytest.raises(ValueError, match=rf"input_ids hold video tokens \(id {video}\): videos are not read"):
        model.generate(torch.tensor([[5, video, END]]), max_new_tokens=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of a tiny vision-language model that was trained with LoRA, what was exported of it, and pictures."""
    folder = tmp_path_factory.mktemp("vision")
    save_llava(folder / "parent", TEMPLATE)
    for n in range(len(QUESTIONS)):
        noise = torch.randint(0, 256, (20, 30, 3), generator=torch.Generator().manual_seed(n))
        Image.fromarray(noise.byte().numpy()).save(folder / f"{n}.png")
    parent, lora = load_parent(str(folder / "parent")), Lora(rank=2, alpha=4)
    adapted = lora.apply(parent.model, parent.mask_id)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            weight += 0.3 * ("lora_B" in name)
    options = ("block_size=8", "token_shift=false", "attention=block", "trainable=lora")
    run = Run.create(config(f"runs_dir={folder / 'runs'}", f"model.path={folder / 'parent'}", *options), {})
    lora.merged(adapted).save_pretrained(run.model_folder)
    parent.save(run.model_folder)
    run.seal("model")
    unknown = {"flops": None, "tokens": 5}
    run.update(status="finished", parent={"source": "llava", "fingerprint": ""}, budget=unknown)
    export(run, folder / "out", threshold=0.02)
    return folder


def run_of(folder) -> Run:
    return Run.newest(folder / "runs")


def answers(name, folder) -> list[tuple[list[int], int]]:
    """What our engine answers to the questions, with one picture each, of a run or an exported folder."""
    loaded = dlm.load(str(name), folder / "runs", "cpu")
    content = [[{"type": "image"}, {"type": "text", "text": question}] for question in QUESTIONS]
    texts = [rendered(loaded.processor, [{"role": "user", "content": parts}]) for parts in content]
    pictures = [[Image.open(folder / f"{n}.png")] for n in range(len(texts))]
    ids, images = zip(
        *(processed(loaded.processor, *asked) for asked in zip(texts, pictures, strict=True)), strict=True
    )
    request = Request([*ids], 21, [0], images=images)
    return [(g.tokens, g.nfe) for g in Threshold(0.02).generate(loaded.denoiser, request)]


def test_a_run_and_the_folder_that_was_exported_of_it_see_the_same(folder):
    made = answers(run_of(folder).id, folder)
    assert made == answers(folder / "out", folder) and made[0][0] != made[1][0]
    assert not any("lora" in name for name in load_file(folder / "out" / "model.safetensors"))


@pytest.mark.slow
def test_the_command_reads_an_exported_folder_and_asks_nothing(folder, call, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run the code of the folder"))
    options = ("prompt=what?", f"image={folder / '0.png'}", "max_new_tokens=21", "device=cpu")
    code, out, err = call(main, f"run={folder / 'out'}", *options)
    ((tokens, nfe), _), tokenizer = answers(folder / "out", folder), dlm.load(str(folder / "out")).tokenizer
    assert code == 0 and f"{len(tokens)} tokens in {nfe} forwards" in out, err
    assert "parent" not in out and "block_diffusion" not in err and tokenizer.decode(tokens[:3]).strip() in out


@pytest.mark.slow
def test_the_example_of_the_card_works_in_a_process_without_this_project(folder):
    card = (folder / "out" / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card and "trained on: tokens | 5 |" in card and "flops" not in card
    example = card.split("```python\n")[1].split("```")[0].replace('from_pretrained("out"', 'from_pretrained("./out"')
    example = example.replace("max_new_tokens=128", "max_new_tokens=21")
    for n, (tokens, nfe) in enumerate(answers(folder / "out", folder)):
        program = example.replace("picture.png", f"{n}.png").replace("…", QUESTIONS[n])
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.modules['dlm'] = None\n{program}\nprint(out.sequences.tolist())"],
            capture_output=True,
            text=True,
            cwd=folder,
            env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        shown, sequence = done.stdout.splitlines()[-2:]
        assert json.loads(sequence)[0][-len(tokens) :] == tokens and f"tensor([{nfe}])" in shown


@pytest.mark.parametrize("layout", [SDAR(), FastDLLM(), Nemotron()])
def test_layouts_of_engines_refuse_a_run_that_reads_images(layout, folder):
    with pytest.raises(
        ValueError, match=f"it reads images, and {layout.architecture} is a model of text: use format=hf"
    ):
        export(run_of(folder), folder / "engine", layout=layout)


def test_the_exported_code_is_that_of_the_package(folder):
    own = (ROOT / "dlm" / "exported" / "pictures_block_diffusion.py").read_text()
    assert (folder / "out" / "pictures_block_diffusion.py").read_text() == own
