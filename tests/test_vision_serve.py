"""The server answers conversations about pictures, beside those of text, as the engine alone does."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from serving import running, seeing, speakers

from dlm.data import tasks
from dlm.data.scenes.rows import Scenes, picture_of

pytest.importorskip("fastapi")

BODY, NEW = 200_000, 12


@pytest.fixture(scope="module")
def speaker():
    return seeing()


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


@pytest.mark.slow
def test_a_model_of_text_refuses_pictures():
    with running({"diffusion": speakers()["diffusion"]}, body=BODY) as server:
        reply = server.post("/v1/chat/completions", **body(uri(SMALL)))
    assert reply.status_code == 400 and "the parent reads text only" in reply.json()["error"]["message"]
