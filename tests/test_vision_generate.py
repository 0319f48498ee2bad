"""`dlm.generate` with pictures, and what is said of pictures that cannot be shown."""

import json
import re

import pytest
import torch
from common import config
from PIL import Image
from visions import save_llava

from dlm.attention.block import Block
from dlm.config.build import ar_denoiser
from dlm.data.picture_files import read_pictures
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold
from dlm.generate import Speaker, literal, main
from dlm.model.denoiser import Denoiser
from dlm.model.parent import load_parent
from dlm.runs.run import Run

pytestmark = pytest.mark.trains

PART = "{{ '<image>' if part.type == 'image' else part.text }}"
TEMPLATE = f"{{% for m in messages %}}{{% for part in m.content %}}{PART}{{% endfor %}}{{% endfor %}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny vision-language model, and pictures."""
    folder = tmp_path_factory.mktemp("vision")
    save_llava(folder / "parent", TEMPLATE)
    noise = torch.Generator().manual_seed(0)
    for name in ("one.png", "two.png"):
        Image.fromarray(torch.randint(0, 256, (20, 30, 3), generator=noise).byte().numpy()).save(folder / name)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def speaker(folder):
    parent = load_parent(str(folder / "parent"))
    scorer = Denoiser(parent.model, Block(8), parent.mask_id, False, parent.layer_types, parent.span_ids)
    return Speaker("dLM", scorer, parent.tokenizer, Threshold(0.5), parent.processor)


@pytest.fixture(scope="module")
def run(folder):
    """The folder that a finished training leaves, with the parent for its result."""
    parent = load_parent(str(folder / "parent"))
    path = f"model.path={folder / 'parent'}"
    made = Run.create(config(f"runs_dir={folder / 'runs'}", path, "block_size=8", "token_shift=true"), {})
    parent.model.save_pretrained(made.model_folder)
    parent.save(made.model_folder)
    made.update(status="finished", ended=1.0, parent={"source": "llava", "fingerprint": parent.fingerprint()})
    return made


def test_the_prompt_of_a_picture_is_what_the_template_and_the_processor_make_of_it(speaker, folder):
    one, two = (read_pictures([str(folder / f"{name}.png")]) for name in ("one", "two"))
    image_id = speaker.processor.image_token_id
    for shown in (one, [*one, *two]):
        ids, images = speaker.encode_with("what?", shown, 8)
        assert ids.count(image_id) == 16 * len(shown) and len(images.of_images["pixel_values"]) == len(shown)
    assert speaker.encode_with("what?", [], 8) == (speaker.encode("what?", 8), None)


def test_the_command_shows_the_name_of_the_picture_and_every_forward(run, folder, call, monkeypatch):
    monkeypatch.chdir(folder)
    options = [f"runs_dir={folder / 'runs'}", f"image={folder / 'one.png'}", "prompt=what?", "max_new_tokens=8"]
    code, out, err = call(main, *map(literal, options), "live=true", "delay=0", "html=answer.html")
    assert code == 0, err
    text = (folder / "answer.html").read_text()
    (race,) = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    (shown,) = race["pictures"]
    assert (shown["name"], shown["width"], shown["height"]) == ("one.png", 30, 20)
    assert shown["source"].startswith("data:image/") and str(folder) not in text
    assert "one.png" in out and "forward" in out and "<image>" not in out and str(folder) not in out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("image=broken.png", "broken.png' is a damaged picture: name a picture that Pillow can open"),
        ("image=none.png", "none.png' is a missing picture"),
        ("prompt=<image>what?", "holds '<image>', which stands for a picture"),
        ("max_new_tokens=4000", "show fewer or smaller pictures"),
    ],
)
def test_what_cannot_be_shown_is_named_in_one_line(option, message, run, folder, call, monkeypatch):
    monkeypatch.chdir(folder)
    options = {"image": "one.png", "prompt": "what?", "max_new_tokens": "8", "runs_dir": "runs"}
    name, _, value = option.partition("=")
    options[name] = value
    code, _, err = call(main, *(literal(f"{name}={value}") for name, value in options.items()))
    assert code != 0 and message in err and err.count("\n") == 1


def test_models_and_processors_that_read_no_pictures_say_so(speaker, folder, monkeypatch):
    text = load_parent("pkg://dlm/assets/tiny", check=False)
    shown = read_pictures([str(folder / "one.png")])
    with pytest.raises(ValueError, match="the parent reads text only"):
        Speaker("AR", ar_denoiser(text), text.tokenizer, Fixed(1)).encode_with("what?", shown, 8)
    ids, images = speaker.encode_with("what?", shown, 8)
    plain = Speaker("AR", ar_denoiser(text), text.tokenizer, Fixed(1))
    with pytest.raises(ValueError, match="qwen3 reads no images: name a vision-language model"):
        plain.answer([i for i in ids if i < 1024], 8, [], 0, images=images)
    monkeypatch.setattr(speaker.processor, "chat_template", None)
    with pytest.raises(ValueError, match="has no chat template"):
        speaker.encode_with("what?", shown, 8)
