"""A server in this process, and what the engine alone answers."""

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn

from dlm.attention.block import Block
from dlm.config.build import ar_denoiser
from dlm.config.settings import Limits
from dlm.decoding.ar import AR
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.stops import StopStrings
from dlm.decoding.fixed import Fixed
from dlm.decoding.self_speculative import SelfSpeculative
from dlm.decoding.threshold import Threshold
from dlm.model.denoiser import Denoiser
from dlm.model.parent import load_parent
from dlm.serving.answers import Answer
from dlm.serving.app import create_app
from dlm.serving.modes import rule_of
from dlm.serving.service import Service
from dlm.types import generator
from dlm.watch.speaker import Speaker

LIMITS = {"default_tokens": 12, "new_tokens": 64, "prompt_tokens": 100, "batch": 4}
LIMITS |= {"queue": 200, "kept_tokens": 300, "body": 5000, "pictures": 2, "pixels": 4096}


def speakers() -> dict[str, Speaker]:
    """The embedded parent as a dLM, untrained, and in its other modes; in float64, so that equality means equality."""
    parent = load_parent("pkg://dlm/assets/tiny", check=False)
    parent.model.double()
    dlm = Denoiser(parent.model, Block(4), parent.mask_id, True, parent.layer_types)
    decoders = {"diffusion": Threshold(0.4), "ar": AR(), "speculate": SelfSpeculative()}
    made = {name: Speaker(name, dlm, parent.tokenizer, decoder) for name, decoder in decoders.items()}
    return made | {"parent": Speaker("parent", ar_denoiser(parent), parent.tokenizer, Fixed(1))}


def seeing() -> Speaker:
    """The embedded vision-language parent as a dLM, untrained; in float64, so that equality means equality."""
    parent = load_parent("pkg://dlm/assets/vlm", check=False)
    parent.model.double()
    dlm = Denoiser(parent.model, Block(4), parent.mask_id, True, parent.layer_types, parent.span_ids)
    return Speaker("diffusion", dlm, parent.tokenizer, Threshold(0.4), parent.processor)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never happens")


@dataclass(frozen=True)
class Server:
    service: Service
    url: str

    def post(self, path: str, **body) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)


@contextmanager
def running(by_mode: dict[str, Speaker], key: str | None = None, **limits):
    """A server on a free port, until the end of the context."""
    service = Service(by_mode, "tiny", Limits(**LIMITS | limits))
    app = create_app(service, key)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Server(service, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def visited(browser, by_mode, width=1200, scheme="light", **options):
    """The page of a server, which is closed before the server ends."""
    with running(by_mode, **options) as server:
        # Playwright waits for a function by `eval`, which the page forbids.
        window = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
        made, errors = browser.new_page(**window, bypass_csp=True), []
        made.set_default_timeout(60_000)
        made.on("pageerror", lambda error: errors.append(str(error)))
        try:
            made.goto(server.url)
            made.wait_for_function("info !== null || !document.querySelector('#key').hidden")
            yield made
            assert errors == []
        finally:
            made.close()


def by_engine(
    speaker: Speaker, prompt: str, max_tokens: int = LIMITS["default_tokens"], seed: int = 0, stop=(), **settings
) -> Answer:
    """What the engine answers to one prompt by itself."""
    decoder, stops = speaker.decoder, StopStrings(tuple(stop), speaker.tokenizer)
    rule = rule_of(decoder, **settings)
    decoder = decoder.sampling(rule.temperature, rule.top_p)
    decoder = decoder.at(rule.threshold) if decoder.threshold is not None else decoder
    ids = speaker.encode(prompt, max_tokens)
    request = Request([ids], max_tokens, speaker.ends, generator=generator(seed), stop=stops or None)
    return Answer.of(decoder.generate(speaker.denoiser, request)[0], stops, speaker.ends)
