"""A server without HTTP: checks what is asked, hands it to the worker, and gives the events of the answers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from dlm.config.settings import Limits
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.stops import StopStrings
from dlm.serving.answers import Answer
from dlm.serving.batcher import Batcher, Done, Event, Job
from dlm.serving.metrics import Metrics
from dlm.serving.modes import DIFFUSION, Encoded, encoded, prompt_of, rule_of
from dlm.serving.pictures import Shown, opened, places_pictures, require_places, shows_pictures
from dlm.serving.protocol import Asked, ChatMessage
from dlm.types import generator
from dlm.watch.speaker import Speaker


class UnknownModel(LookupError):
    """No model of this name is served."""


class Answering:
    """The prompts of one request, each with its images, while they are answered. `seed` made the samples: that of
    choice i is `seed` + i."""

    def __init__(self, service: Service, speaker: Speaker, prompts: list[Encoded], stop: StopStrings, seed: int):
        self.service, self.speaker, self.stop, self.seed = service, speaker, stop, seed
        self.prompts, self.images = [ids for ids, _ in prompts], [images for _, images in prompts]
        self.queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.loop, self.jobs = asyncio.get_running_loop(), []

    def begin(self, asked: Asked, max_new_tokens: int, traced: bool) -> None:
        """Hand the prompts to the worker. Raises `ValueError` for settings that the decoder cannot have, and `Busy`."""
        speaker, device = self.speaker, self.speaker.denoiser.model.device
        rule = rule_of(speaker.decoder, asked.temperature, asked.top_p, asked.threshold)
        for index, (prompt, images) in enumerate(zip(self.prompts, self.images, strict=True)):
            request = Request(
                [prompt],
                max_new_tokens,
                speaker.ends,
                generator=generator(self.seed + index, device=device),
                stop=self.stop or None,
                images=[images],
            )
            self.jobs.append(Job(speaker.name, request, rule, self.teller(index), traced))
        self.service.batcher.submit(*self.jobs)

    def teller(self, index: int):
        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody listens
                self.loop.call_soon_threadsafe(self.queue.put_nowait, (index, event))

        return tell

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """The events of all prompts as they come, each with the number of its prompt, until all are answered. Raises
        the error that ended one. Who stops listening cancels what is not finished."""
        missing = len(self.jobs)
        try:
            while missing:
                index, event = await self.queue.get()
                if isinstance(event, Exception):
                    raise event
                missing -= isinstance(event, Done)
                yield index, event
        finally:
            self.cancel()

    def finish(self, index: int, done: Done) -> Answer:
        """The answer to prompt `index`, which is counted."""
        answer = Answer.of(done.generation, self.stop, self.speaker.ends)
        self.service.metrics.answered(self.speaker.name, len(self.prompts[index]), answer, done.seconds)
        return answer

    def cancel(self) -> None:
        self.service.batcher.cancel(*self.jobs)

    def give_up(self, error: Exception) -> None:
        """Cancel, and let `events` raise an error."""
        self.cancel()
        self.queue.put_nowait((0, error))


class Service:
    """The speakers of a model by their mode, `name` for clients, and the worker that decodes for all of them."""

    def __init__(self, speakers: dict[str, Speaker], name: str, limits: Limits, template: str = "auto"):
        self.speakers, self.name, self.limits, self.template = speakers, name, limits, template
        self.metrics = Metrics()
        self.batcher = Batcher(speakers, limits.batch, limits.queue, limits.kept_tokens, self.metrics.forward)
        self.metrics.watch(self.batcher)

    @property
    def models(self) -> list[str]:
        """The names of the modes as models: the name alone decodes by diffusion, NAME:ar in the mode `ar`."""
        return [self.name if mode == DIFFUSION else f"{self.name}:{mode}" for mode in self.speakers]

    def speaker(self, model: str | None, mode: str) -> Speaker:
        """Raises `UnknownModel` for another name than those of `models`, and `ValueError` for an unknown mode."""
        if model is not None and model not in self.models:
            raise UnknownModel(f"model {model!r} is not served here: choose {', '.join(self.models)}")
        chosen = mode if model in (None, self.name) else model.removeprefix(f"{self.name}:")
        if chosen not in self.speakers:
            raise ValueError(f"mode {chosen!r} is not one of {', '.join(self.speakers)}")
        return self.speakers[chosen]

    def ask(
        self,
        asked: Asked,
        prompts: Sequence[str | list[int] | Shown],
        max_new_tokens: int | None,
        stops: Sequence[str] = (),
        traced: bool = False,
    ) -> Answering:
        """Begin to answer prompts, each `n` times. Raises `UnknownModel`, `Busy`, and `ValueError` for what the model
        cannot do or the limits exclude."""
        speaker, new = self.speaker(asked.model, asked.mode), max_new_tokens or self.limits.default_tokens
        if new > self.limits.new_tokens:
            raise ValueError(f"max_tokens {new} exceeds this server's {self.limits.new_tokens}")
        given = [self.encoded(speaker, prompt, new) for prompt in prompts]
        seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
        stop = StopStrings((*(asked.stop or ()), *stops), speaker.tokenizer)
        answering = Answering(self, speaker, [prompt for prompt in given for _ in range(asked.n)], stop, seed)
        answering.begin(asked, new, traced)
        return answering

    def encoded(self, speaker: Speaker, prompt: str | list[int] | Shown, max_new_tokens: int) -> Encoded:
        ids, images = encoded(speaker, prompt, max_new_tokens)
        if len(ids) > self.limits.prompt_tokens:
            raise ValueError(f"a prompt of {len(ids)} tokens exceeds this server's {self.limits.prompt_tokens}")
        self.batcher.lanes[speaker.name].session.check(Request([ids], max_new_tokens, images=[images]))
        return ids, images

    def chat(
        self, asked: Asked, chat: Sequence[ChatMessage], template: str | None = None
    ) -> tuple[str | Shown, tuple[str, ...]]:
        """The prompt of a client's chat, and the texts that end its answer. Raises `UnknownModel`, and `ValueError` as
        `prompt_of` and, for the pictures, `opened`."""
        speaker, template = self.speaker(asked.model, asked.mode), template or self.template
        messages = [message.plain() for message in chat]
        if shows_pictures(messages):
            require_places(speaker, template)
            messages = opened(messages, self.limits)
        return prompt_of(speaker, messages, template)

    def settings(self) -> dict[str, dict[str, Any]]:
        """The numbers of every mode's decoder, the block size, and whether it reads pictures."""
        return {
            mode: {
                "decoder": type(speaker.decoder).__name__,
                "block_size": speaker.denoiser.pattern.block_size,
                "pictures": places_pictures(speaker, self.template),
                **{name: n for name, n in vars(speaker.decoder.rule).items() if isinstance(n, int | float)},
            }
            for mode, speaker in self.speakers.items()
        }

    def close(self) -> None:
        self.batcher.close()
