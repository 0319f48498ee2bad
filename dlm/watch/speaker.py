"""A model that answers prompts, watched forward by forward: the dLM or its AR parent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from PIL.Image import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from dlm.data.packing import adds_bos
from dlm.data.pictures import processed, rendered, require_processor
from dlm.decoding.base import Decoder
from dlm.decoding.engine.canvas import Canvas, Generation
from dlm.decoding.engine.lengths import room
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.stops import StopStrings
from dlm.model.denoiser import Denoiser
from dlm.model.eos import eos_ids
from dlm.model.positions import require_positions
from dlm.types import Images, generator
from dlm.watch.trace import Step, Trace, closing, opening

OnFrame = Callable[[Canvas, float], None]  # takes the canvas after a forward, and the seconds of decoding so far


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt: its text and tokens, cut before the first stop string, and the seconds it took."""

    text: str
    generation: Generation
    seconds: float


@dataclass(frozen=True)
class Speaker:
    """A model with its tokenizer and decoder, either the dLM or its parent. `processor` is that of a model that reads
    images."""

    name: str
    denoiser: Denoiser
    tokenizer: PreTrainedTokenizerBase
    decoder: Decoder
    processor: ProcessorMixin | None = None

    @property
    def ends(self) -> list[int]:
        """The ids of the tokens that end an answer."""
        return eos_ids(self.denoiser.model, self.tokenizer)

    def encode(self, prompt: str, max_new_tokens: int) -> list[int]:
        """The token ids of a prompt, with BOS if training added it. Raises `ValueError` if the model cannot continue
        it."""
        bos = [self.tokenizer.bos_token_id] if adds_bos(self.tokenizer) else []
        token = getattr(self.processor, "image_token", None)
        if token and token in prompt:
            raise ValueError(f"prompt {prompt!r} holds {token!r}, which stands for a picture: image=… puts it in place")
        ids = bos + self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        self.require_readable(ids, prompt, max_new_tokens)
        return ids

    def encode_with(self, prompt: str, pictures: list[Image], max_new_tokens: int) -> tuple[list[int], Images | None]:
        """The token ids of a prompt about pictures, in the model's chat template, and the tensors of the pictures.
        Raises `ValueError` if it reads none, or as `encode`."""
        if not pictures:
            return self.encode(prompt, max_new_tokens), None
        processor = require_processor(self.processor, f"prompt {prompt!r}")
        token = getattr(processor, "image_token", None)
        if token and token in prompt:
            raise ValueError(f"prompt {prompt!r} holds {token!r}, which stands for a picture: image=… puts it in place")
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": prompt}]
        ids, images = processed(processor, rendered(processor, [{"role": "user", "content": content}]), pictures)
        self.require_readable(ids, prompt, max_new_tokens)
        return ids, images

    def require_readable(self, ids: list[int], prompt: str, max_new_tokens: int) -> None:
        """Raises `ValueError` if the model cannot continue these ids of a prompt."""
        if self.denoiser.mask_id in ids:
            raise ValueError(
                f"prompt {prompt!r} holds the mask token {self.tokenizer.mask_token!r}, which stands for no text: "
                "leave it out"
            )
        if not ids and self.denoiser.token_shift:
            raise ValueError(
                f"prompt {prompt!r} is empty, and the {self.name} scores every token from the one before it: give "
                "some text to continue"
            )
        total = room(len(ids) + max_new_tokens, self.denoiser.pattern, self.decoder.loop.sliding)
        what = f"the prompt's {len(ids)} tokens and max_new_tokens {max_new_tokens}, {total} up to the end of a block,"
        remedy = "shorten the prompt, show fewer or smaller pictures, or lower max_new_tokens"
        require_positions(self.denoiser.model, total, what, remedy)

    def answer(
        self,
        ids: list[int],
        max_new_tokens: int,
        stops: list[str],
        seed: int,
        on_frame: OnFrame | None = None,
        images: Images | None = None,
    ) -> Answer:
        """Continue the prompt `ids`, whose tokens stand for these `images`, up to one of the strings `stops`. The
        seconds exclude those of `on_frame`."""

        stop, drawing = StopStrings(tuple(stops), self.tokenizer), 0.0

        def on_step(canvas: Canvas) -> None:
            nonlocal drawing
            now = time.perf_counter()
            on_frame(canvas, now - begin - drawing)
            drawing += time.perf_counter() - now

        device = self.denoiser.model.device
        request = Request(
            [ids],
            max_new_tokens,
            self.ends,
            generator=generator(seed, device=device),
            stop=stop or None,
            on_step=on_step if on_frame else None,
            images=[images],
        )
        warm_up = Request([ids], 1, generator=generator(seed, device=device), images=[images])
        self.decoder.generate(self.denoiser, warm_up)
        begin = time.perf_counter()
        (generation,) = self.decoder.generate(self.denoiser, request)
        seconds = time.perf_counter() - begin - drawing
        return Answer(*stop.cut(generation), seconds)


def trace(speaker: Speaker, ids: list[int], steps: list[Step], answer: Answer) -> Trace:
    """The trace of an answer to the prompt `ids` from the steps of its forwards (see `dlm.watch.trace.Recorder`),
    without positions behind the answer's last token."""
    tokens = len(answer.generation.tokens)
    return Trace(
        opening(speaker.name, speaker.tokenizer, ids, speaker.denoiser.pattern, speaker.ends),
        [step.before(len(ids) + tokens) for step in steps],
        closing(answer.text, tokens, answer.generation.nfe, answer.seconds),
    )
