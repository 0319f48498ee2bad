"""The server's page takes pictures, in a real browser: what the model is shown is what was chosen, pasted or dropped.

Needs playwright (`pip install '.[browser]'`) and a Chromium."""

import base64
import io
import json
import re
from types import SimpleNamespace

import pytest
from PIL import Image
from serving import LIMITS, by_engine, speakers, visited

pytestmark = [pytest.mark.slow, pytest.mark.trains]

NEW = LIMITS["default_tokens"]
# An event that brings files: [[name, type, base64], …], and maybe a text.
BRING = """([kind, files, text]) => {
  const data = new DataTransfer();
  for (const [name, type, content] of files)
    data.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name, { type }));
  if (text) data.items.add(text, "text/plain");
  const options = { bubbles: true, cancelable: true, clipboardData: data, dataTransfer: data };
  const made = kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options);
  document.querySelector("#text").dispatchEvent(made);
  return made.defaultPrevented;
}"""
SEEN = "[...document.querySelectorAll('#attached figcaption')].map(e => e.textContent)"


def file(picture: Image.Image, kind: str = "png") -> bytes:
    made = io.BytesIO()
    picture.save(made, kind)
    return made.getvalue()


def brought(page, kind: str, *files: tuple[str, str, bytes], text: str = "") -> bool:
    """Whether the page takes an event with files: `paste` or `drop`."""
    return page.evaluate(BRING, [kind, [[n, t, base64.b64encode(content).decode()] for n, t, content in files], text])


def attached(page, *names: str) -> None:
    page.wait_for_function(f"JSON.stringify({SEEN}) === {json.dumps(json.dumps(names, separators=(',', ':')))}")


def refused(page, *files: tuple[str, str, bytes]) -> str:
    page.evaluate("trouble()")
    brought(page, "drop", *files)
    page.wait_for_selector("#trouble:not([hidden])")
    return page.inner_text("#trouble")


def asked(page, question: str) -> SimpleNamespace:
    """The answer to a question, and the picture with which it is shown."""
    page.fill("#text", question)
    page.press("#text", "Enter")
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_selector("#score:not([hidden])")
    (trace,) = page.evaluate("player.race.traces")
    shown = page.evaluate("[...document.querySelectorAll('#pictures img')].map(e => e.src)")
    return SimpleNamespace(closing=trace["closing"], prompt=trace["opening"]["prompt_tokens"], shown=shown)


def test_chosen_pasted_and_dropped_pictures_are_answered_as_the_engine_answers_them(browser, speaker, scenes):
    one, two = map(file, scenes)
    with visited(browser, {"diffusion": speaker}, body=200_000) as page:
        page.set_input_files("#files", [{"name": "one.png", "mimeType": "image/png", "buffer": one}])
        attached(page, "one.png")
        first = asked(page, "count:")
        assert brought(page, "paste", ("two.png", "image/png", two))
        attached(page, "one.png", "two.png")
        both = asked(page, "count:")
        page.click("#attached button >> nth=0")
        attached(page, "two.png")
        second = asked(page, "count:")
        page.click("#attached button")
        assert not brought(page, "paste", ("image.png", "image/png", two), text="a cell of a table")
        assert brought(page, "drop", ("one.png", "image/png", one), ("two.png", "image/png", two))
        attached(page, "one.png", "two.png")
        dropped = asked(page, "count:")
        for _ in range(2):
            page.click("#attached button >> nth=0")
        text = asked(page, "count:")
        kept = page.evaluate("races.map(race => race.pictures.map(picture => picture.name))")
    for said, pictures in ((first, scenes[:1]), (both, scenes), (second, scenes[1:]), (dropped, scenes)):
        ids, images = speaker.encode_with("count:", pictures, NEW)
        expected = speaker.answer(ids, NEW, [], 0, images=images)
        assert said.prompt == ids and said.closing["text"] == expected.text
        assert said.closing["nfe"] == expected.generation.nfe
        sources = [f"data:image/png;base64,{base64.b64encode(file(picture)).decode()}" for picture in pictures]
        assert said.shown == sources
    assert text.closing["text"] == by_engine(speaker, "count:", NEW).text and text.shown == []
    assert kept == [["one.png"], ["one.png", "two.png"], ["two.png"], ["one.png", "two.png"], []]


def test_what_cannot_go_with_a_prompt_is_said_and_the_pictures_before_it_stay(browser, speaker, scenes):
    png, noise = file(scenes[0]), Image.effect_noise((60, 60), 90)
    with visited(browser, {"diffusion": speaker}, width=420, body=6000) as page:
        brought(page, "drop", ("one.png", "image/png", png))
        attached(page, "one.png")
        assert refused(page, ("cat.txt", "text/plain", b"cat")).startswith("cat.txt is no picture of the formats PNG,")
        assert refused(page, ("no.png", "image/png", b"no picture")) == "no.png cannot be read: is it a whole picture?"
        wide = file(Image.new("RGB", (128, 64)))
        assert "it has 128 x 64 pixels, and this server takes 4096" in refused(page, ("wide.png", "image/png", wide))
        said = refused(page, ("large.bmp.png", "image/png", file(noise) * 2))
        assert re.search(r"large.bmp.png is too large: it has 0.\d\d MB, and this server has room for 0.00 MB", said)
        assert "limits.body" in said
        attached(page, "one.png")
        brought(page, "drop", ("two.png", "image/png", png))
        attached(page, "one.png", "two.png")
        said = refused(page, ("three.png", "image/png", png))
        assert said == "three.png is too many: this server takes 2 pictures with a prompt."
        page.fill("#text", "<image>")
        page.press("#text", "Enter")
        page.wait_for_function("document.querySelector('#trouble').textContent.includes('stands for a picture')")
        attached(page, "one.png", "two.png")


def test_the_page_of_a_model_of_text_offers_no_pictures_and_says_so_if_one_is_dropped(browser, scenes):
    with visited(browser, {"diffusion": speakers()["diffusion"]}) as page:
        assert page.is_hidden("#attach") and "Pictures" not in page.inner_text("#how")
        assert refused(page, ("one.png", "image/png", file(scenes[0]))).startswith("This model reads text only")
        attached(page)


@pytest.mark.parametrize(("width", "scheme"), [(420, "dark"), (1200, "light")])
def test_thumbnails_fit_the_window_have_names_and_are_reached_by_keys(width, scheme, browser, speaker, scenes):
    name = "a_rather_long_name_of_a_picture_without_a_space_in_it_that_goes_on.png"
    with visited(browser, {"diffusion": speaker}, width, scheme, body=200_000) as page:
        brought(page, "drop", *[(name, "image/png", file(scene)) for scene in scenes])
        attached(page, name, name)
        asked(page, "count:")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sizes = page.evaluate("[...document.querySelectorAll('.pictures img')].map(e => [e.naturalWidth, e.alt])")
        assert sizes == [[48, f"Picture {name}"]] * 4 and page.evaluate("getComputedStyle(document.body).colorScheme")
        page.focus("#text")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Take back {name}"
        page.keyboard.press("Enter")
        attached(page, name)
        assert page.evaluate("document.activeElement.id") == "attach"


def test_a_saved_page_has_the_pictures_and_asks_for_nothing(browser, speaker, scenes, tmp_path):
    with visited(browser, {"diffusion": speaker}, body=200_000) as page:
        brought(page, "drop", ("one.png", "image/png", file(scenes[0])))
        attached(page, "one.png")
        said = asked(page, "count:")
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / "saved.html")
        requests = []
        page.on(
            "request", lambda request: requests.append(request.url) if not request.url.startswith("data:") else None
        )
        page.goto((tmp_path / "saved.html").as_uri())
        assert page.evaluate("[...document.querySelectorAll('#pictures img')].map(e => e.src)") == said.shown
        assert requests == [(tmp_path / "saved.html").as_uri()] and page.is_hidden("#ask")
