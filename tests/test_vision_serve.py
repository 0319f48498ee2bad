"""The server answers conversations about pictures, beside those of text, as the engine alone does."""

import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image
from serving import running, speakers

from dlm.data import tasks
from dlm.data.picture_files import read_pictures
from dlm.data.scenes.rows import Scenes, picture_of
from dlm.serving.pictures import opened
from dlm.serving.pictures import picture_of as opened_uri

pytest.importorskip("fastapi")

BODY, NEW = 200_000, 12


@pytest.fixture(scope="module")
def server(speaker):
    with running({"diffusion": speaker}, body=BODY) as server:
        yield server


def uri(picture: Image.Image, kind: str = "png") -> str:
    file = io.BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def body(*uris: str, text: str = "count:", **more) -> dict:
    content = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris] + [{"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": NEW, "temperature": 0} | more


@pytest.mark.trains
def test_pictures_and_texts_are_answered_side_by_side_as_the_engine_answers_each(server, speaker):
    scenes = tasks.evaluation_set("test", 1, families=Scenes.asked)[:3]
    asked = [body(uri(picture_of(scene.image)), text=scene.prompt) for scene in scenes]
    asked.insert(1, {"messages": [{"role": "user", "content": "count:"}], "max_tokens": NEW, "temperature": 0})
    with ThreadPoolExecutor(4) as pool:
        replies = [*pool.map(lambda one: server.post("/v1/chat/completions", **one), asked)]
    encoded = [speaker.encode_with(scene.prompt, [picture_of(scene.image)], NEW) for scene in scenes]
    encoded.insert(1, (speaker.encode("count:", NEW), None))
    for reply, (ids, images) in zip(replies, encoded, strict=True):
        expected = speaker.answer(ids, NEW, [], 0, images=images)
        assert reply.status_code == 200, reply.text
        said = reply.json()
        assert said["choices"][0]["message"]["content"] == expected.text
        assert said["usage"]["prompt_tokens"] == len(ids)
    assert len({reply.json()["choices"][0]["message"]["content"] for reply in replies}) > 1


def test_a_picture_stands_as_the_camera_was_held():
    picture, file = Image.new("RGB", (4, 2)), io.BytesIO()
    picture.getexif()[0x0112] = 6  # turned by a quarter
    picture.save(file, "jpeg", exif=picture.getexif())
    sent = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    assert opened_uri(sent, 4096).size == (2, 4) and read_pictures([sent])[0].size == (2, 4)


SMALL, WIDE = Image.new("RGB", (8, 8)), Image.new("RGB", (128, 64))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            body("https://example.org/cat.png"),
            "image_url 'https://example.org/cat.png' is no data URI, data:image/png;base64,…: this server fetches",
        ),
        (body("data:image/png;base64,AAAA"), "image_url holds no whole picture of the formats PNG, JPEG, WEBP, GIF"),
        (body(uri(SMALL)[:-40]), "image_url holds no whole picture"),
        (body(uri(SMALL, "bmp")), "image_url holds no whole picture of the formats"),
        (body(uri(WIDE)), "a picture of 128 x 64 pixels exceeds this server's 4096"),
        (body(*[uri(SMALL)] * 3), "3 pictures exceed this server's 2"),
        (body(uri(SMALL), text="<image>count:"), "a text holds '<image>', which stands for a picture: leave it out"),
        (body(uri(SMALL), template="plain"), "template=plain has no places for pictures: choose template=chat"),
        (body(*[uri(SMALL)] * 2, max_tokens=64, text="count:" * 90), "exceeds"),
    ],
)
def test_pictures_that_cannot_be_shown_are_refused_in_one_line(asked, message, server):
    reply = server.post("/v1/chat/completions", **asked)
    said = reply.json()["error"]["message"]
    assert reply.status_code == 400 and message in said and "\n" not in said


def test_a_trace_of_a_chat_about_pictures_has_the_tokens_and_the_answer_of_the_chat(server, speaker):
    asked = body(uri(picture_of(tasks.evaluation_set("test", 1, families=Scenes.asked)[0].image)))
    told = dict(line.split("\n") for line in server.post("/dlm/trace", **asked).text.strip().split("\n\n")[:-1])
    opening, closing = (json.loads(told[f"event: {name}"].removeprefix("data: ")) for name in ("opening", "closing"))
    said = server.post("/v1/chat/completions", **asked).json()
    assert closing["text"] == said["choices"][0]["message"]["content"] and closing["nfe"] == said["usage"]["nfe"]
    assert opening["prompt_tokens"].count(speaker.processor.image_token_id) == 16
    assert server.service.settings()["diffusion"]["pictures"]


@pytest.mark.parametrize("more", [{}, {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}])
def test_a_trace_is_of_a_prompt_or_of_messages(more, server):
    reply = server.post("/dlm/trace", **more)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "the body must have either a prompt or messages"


def test_turns_without_pictures_are_laid_out_by_the_processor_as_those_with(server, speaker, monkeypatch):
    """Also where the tokenizer has no template, or takes contents in another form."""
    monkeypatch.setattr(speaker.tokenizer, "chat_template", None)
    said = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "count:"}], max_tokens=NEW)
    expected = speaker.answer(speaker.encode("count:", NEW), NEW, [], 0)
    assert said.json()["choices"][0]["message"]["content"] == expected.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/dlm/trace"])
def test_the_server_answers_others_while_pictures_are_opened(path, server, monkeypatch):
    begun, answered = threading.Event(), threading.Event()

    def slow(messages, limits):
        begun.set()
        assert answered.wait(30), "nobody else was answered"
        return opened(messages, limits)

    monkeypatch.setattr("dlm.serving.service.opened", slow)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(server.post, path, **body(uri(SMALL)))
        assert begun.wait(30) and httpx.get(server.url + "/health", timeout=10).status_code == 200
        answered.set()
        assert reply.result().status_code == 200


@pytest.mark.slow
def test_a_model_of_text_refuses_pictures():
    with running({"diffusion": speakers()["diffusion"]}, body=BODY) as server:
        assert not server.service.settings()["diffusion"]["pictures"]
        reply = server.post("/v1/chat/completions", **body(uri(SMALL)))
    assert reply.status_code == 400 and "the parent reads text only" in reply.json()["error"]["message"]
