"""A conversation with a model in one of its modes, which continues from the cache: what has been read or written is not
read again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.stops import StopStrings
from dlm.serving.answers import Answer, Growing
from dlm.serving.batcher import Event, Final, Job, Lane
from dlm.serving.modes import Encoded, encoded, prompt_of, rule_of
from dlm.types import generator
from dlm.watch.speaker import Speaker

Show = Callable[[str, int], None]  # takes a piece of text, and the forward that committed it
Turn = dict[str, Any]  # its role, and its content: a text or, with pictures, parts


@dataclass(frozen=True)
class Said:
    """An answer, the tokens of its prompt, and the seconds it took."""

    answer: Answer
    prompt_tokens: int
    seconds: float


@dataclass
class Talk:
    """The turns so far, the pictures that are `attached` to the next question, and how it is answered. `system` is an
    instruction before all turns."""

    speakers: dict[str, Speaker]
    max_new_tokens: int
    template: str = "auto"
    system: str | None = None
    stops: tuple[str, ...] = ()
    seed: int = 0
    kept_tokens: int = 0
    turns: list[Turn] = field(default_factory=list)
    attached: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self):
        self.lanes: dict[str, Lane] = {}

    def attach(self, mode: str, pictures: Sequence[tuple[str, Image]]) -> None:
        """Attach pictures by their names. Raises `ValueError` if the model reads none, or not so many beside what has
        been said."""
        attached = self.attached + [{"type": "image", "image": picture, "name": name} for name, picture in pictures]
        self.encoded(self.speakers[mode], [*self.turns, asked("", attached)])
        self.attached = attached

    def forget(self) -> None:
        """Begin again, without turns and pictures."""
        self.turns, self.attached = [], []

    def answer(self, mode: str, question: str | None, show: Show) -> Said:
        """Answer a question about the attached pictures, or with None the last one again, without keeping the answer.
        The text is shown as it becomes final. Raises `ValueError` if the conversation exceeds what the model can read;
        the question is forgotten then, and its pictures stay attached."""
        turns = self.turns[:-1] if question is None else [*self.turns, asked(question, self.attached)]
        said = self.spoken(mode, turns, show)
        if question is not None:
            self.turns, self.attached = [*turns, {"role": "assistant", "content": said.answer.text}], []
        return said

    def encoded(self, speaker: Speaker, turns: list[Turn]) -> tuple[Encoded, StopStrings]:
        """What a model is given of the turns, and what ends its answer."""
        before = [{"role": "system", "content": self.system}] if self.system else []
        prompt, stops = prompt_of(speaker, [*before, *turns], self.template)
        stop = StopStrings((*self.stops, *stops), speaker.tokenizer)
        return encoded(speaker, prompt, self.max_new_tokens), stop

    def spoken(self, mode: str, turns: list[Turn], show: Show) -> Said:
        speaker = self.speakers[mode]
        given, stop = self.encoded(speaker, turns)
        growing, last = Growing(speaker.tokenizer, stop.strings), 1
        ended: list[Event] = []

        def tell(event: Event) -> None:
            nonlocal last
            if not isinstance(event, Final):
                return ended.append(event)
            for token, forward in zip(event.tokens, event.forwards, strict=True):
                last = forward
                if piece := growing.more([token]):
                    show(piece, forward)

        self.decode(speaker, given, stop, rule_of(speaker.decoder), tell)
        (done,) = ended
        answer = Answer.of(done.generation, stop, speaker.ends)
        told = len(growing.tokens)
        tell(Final(answer.generation.tokens[told:], answer.generation.step[told:]))
        if rest := growing.rest(answer.text):
            show(rest, last)
        return Said(answer, len(given[0]), done.seconds)

    def decode(
        self, speaker: Speaker, given: Encoded, stop: StopStrings, rule: CommitRule, tell: Callable[[Event], None]
    ) -> None:
        """Run the forwards of one prompt."""
        lane = self.lanes.setdefault(speaker.name, Lane(speaker, self.kept_tokens))
        drawn = generator(self.seed, len(self.turns), device=speaker.denoiser.model.device)
        options = {"generator": drawn, "stop": stop or None, "images": [given[1]]}
        request = Request([given[0]], self.max_new_tokens, speaker.ends, **options)
        lane.session.check(request)
        job = Job(speaker.name, request, rule, tell)
        lane.add(job)
        try:
            while lane.jobs:
                lane.step()
        except BaseException:
            del self.lanes[speaker.name]  # a forward may have been half done
            raise


def asked(question: str, pictures: list[dict[str, Any]]) -> Turn:
    """A turn of the user, with its pictures before the question."""
    content = [*pictures, {"type": "text", "text": question}] if pictures else question
    return {"role": "user", "content": content}
