"""What is said, in one line and before any compute, of data with pictures that cannot be trained on. (`dlm.generate` is
held in test_vision_generate.py, what an encoder leaves out in test_image_chat.py.)"""

import json

import pytest
import torch
from common import config, everyday
from PIL import Image
from visions import save_llava

from dlm import train
from dlm.data import __main__ as data_command

pytestmark = pytest.mark.trains

DATA = ("data=image_chat", "data.path=chat.jsonl", "data.length=64", "data.batch_size=2", "block_size=8")
TEXT_ONLY = "data=image_chat has pictures, and the parent reads text only: choose a vision-language parent"


@pytest.fixture(autouse=True)
def rows(tmp_path, monkeypatch, own_cache):
    """Five rows, of which the second has a damaged picture and the fourth more pictures than a row has room for."""
    monkeypatch.chdir(tmp_path)
    noise = torch.randint(0, 256, (48, 48, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.byte().numpy()).save("one.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    pictures = [["one.png"], ["broken.png"], ["one.png"], ["one.png"] * 9, ["one.png"]]
    rows = [{"images": p, "prompt": "<image>" * len(p) + "what?", "completion": "a"} for p in pictures]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_rows_with_damaged_or_too_many_pictures_are_named_by_validate(capsys):
    with pytest.raises(SystemExit) as ended:
        data_command.validate(config(*DATA, "model=tiny_vlm", name="data"))
    said = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1 and len(said) == 3
    assert said[0].startswith("row 2 of data.path 'chat.jsonl': a damaged picture (broken.png)")
    assert said[1].startswith("row 4 of data.path 'chat.jsonl': ")
    assert said[1].endswith("with 9 pictures, more than data.length 64")
    assert said[2].endswith("5 rows, 2 problems")


def test_a_parent_of_text_is_refused_by_validate():
    with pytest.raises(ValueError, match=TEXT_ONLY):
        data_command.validate(config(*DATA, "model=tiny", name="data"))


@pytest.mark.parametrize(
    ("options", "message"),
    everyday(
        [
            (DATA + ("model=tiny",), TEXT_ONLY),
            (("data=scenes", "model=tiny"), "data=scenes has pictures, and the parent reads text only"),
            (
                DATA + ("model.path=parent",),
                "the parent's processor has no chat template, by which data=image_chat would",
            ),
        ]
    ),
)
def test_a_training_that_its_parent_cannot_read_ends_in_one_line(options, message, call, tmp_path):
    if "model.path=parent" in options:
        save_llava(tmp_path / "parent")
    code, _, err = call(train.main, *options, "recipe=none", "logger=csv", "runs_dir=runs", "tokens=4096")
    assert code != 0 and message in err and err.strip().count("\n") == 0
    assert not list(tmp_path.glob("runs/*/model"))
