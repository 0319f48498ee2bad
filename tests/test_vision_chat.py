"""`python -m dlm.chat` about pictures: what the model is given of the turns, and what is said of a wrong line."""

import io

import pytest
from rich.console import Console
from serving import speakers

from dlm.chat import Chatting
from dlm.data.pictures import processed
from dlm.serving.talk import Talk

pytestmark = pytest.mark.trains

NEW = 6
CONTENT = "{% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
MARKED = (
    "{% for m in messages %}[{{ m.role }}]" + CONTENT + "{% endfor %}{% if add_generation_prompt %}[said]{% endif %}"
)


@pytest.fixture
def folder(tmp_path, scenes, monkeypatch):
    """The working directory, with pictures."""
    for name, scene in zip(("one.png", "two words.png"), scenes, strict=True):
        scene.save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said_to(talk: Talk, *lines: str) -> list[str]:
    """What is shown after these lines."""
    shown = io.StringIO()
    Chatting(talk, Console(file=shown)).run(iter(lines))
    return shown.getvalue().splitlines()


def test_every_turn_is_laid_out_by_the_template_with_all_pictures_so_far(speaker, scenes, monkeypatch):
    monkeypatch.setattr(speaker.processor, "chat_template", MARKED)
    talk, text, kept = Talk({"diffusion": speaker}, NEW, system="Be brief.", kept_tokens=200), "[system]Be brief.", []
    for question, pictures in (("hello", []), ("count:", scenes[:1]), ("and:", []), ("both:", scenes)):
        if pictures:
            talk.attach("diffusion", [("scene.png", picture) for picture in pictures])
        said = talk.answer("diffusion", question, lambda piece, forward: None)
        kept += pictures
        text += f"[user]{'<image>' * len(pictures)}{question}"
        ids, images = processed(speaker.processor, text + "[said]", kept)
        expected = speaker.answer(ids, NEW, [], 0, images=images)
        assert said.prompt_tokens == len(ids) and ids.count(speaker.processor.image_token_id) == 16 * len(kept)
        assert said.answer.generation.tokens == expected.generation.tokens
        text += f"[assistant]{said.answer.text}"
        assert talk.attached == []


def test_lines_attach_list_and_take_back_pictures(speaker, folder):
    lines = ["/images", "/image one.png", "/image two words.png", "/image", "/image one.png 'two words.png'", "count:"]
    said = said_to(Talk({"diffusion": speaker}, NEW), *lines, "/image one.png", "/images", "/reset", "/images")
    one, two = "one.png (48 x 48 pixels)", "two words.png (48 x 48 pixels)"
    none = "there are no pictures: /image PATH attaches one"
    assert said[:5] == [
        none,
        f"{one}: with the next message",
        f"{one}, {two}: with the next message",
        "the next message has no pictures",
        f"{one}, {two}: with the next message",
    ]
    listed = [f"message 1: {one}", f"message 1: {two}", f"the next message: {one}"]
    assert said[-5:] == [*listed, "the conversation is forgotten", none]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/image none.png", "image 'none.png' is a missing picture: name a picture that Pillow can open"),
        ("/image one.png broken.png", "image 'broken.png' is a damaged picture"),
        ("/image ~no_such_user/one.png", "image '~no_such_user/one.png' is a missing picture"),
        ("/image https://example.org/one.png", "is the address of a picture, which is not downloaded"),
        ("/image 'one.png", "/image 'one.png cannot be read (No closing quotation): put quotes around a path"),
        ("/image " + "one.png " * 64, "show fewer or smaller pictures"),
        ("<image>count:", "a text holds '<image>', which stands for a picture: leave it out"),
    ],
)
def test_a_wrong_line_is_told_in_one_and_the_pictures_before_it_stay(line, message, speaker, folder):
    talk = Talk({"diffusion": speaker}, NEW)
    said = said_to(talk, "/image one.png", line)
    assert len(said) == 2 and said[1].startswith("error: ") and message in said[1]
    assert [part["name"] for part in talk.attached] == ["one.png"] and talk.turns == []


def test_a_model_of_text_and_a_template_without_places_say_so_and_the_chat_goes_on(speaker, folder):
    talk = Talk({"diffusion": speakers()["diffusion"]}, NEW)
    first, *rest = said_to(talk, "/image one.png", "hello")
    assert "error: a conversation has pictures, and the parent reads text only" in first
    assert talk.attached == [] and len(talk.turns) == 2 and "tokens in" in rest[-1]
    said = said_to(Talk({"diffusion": speaker}, NEW, template="plain"), "/image one.png")
    assert said == ["error: template=plain has no places for pictures: choose template=chat"]
