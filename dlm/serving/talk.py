"""A conversation with a model in one of its modes, which continues from the cache: what has been read or written is not
read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.stops import StopStrings
from dlm.serving.answers import Answer, Growing
from dlm.serving.batcher import Event, Final, Job, Lane
from dlm.serving.modes import conversation, rule_of, stops_of
from dlm.types import generator
from dlm.watch.speaker import Speaker

Show = Callable[[str, int], None]  # takes a piece of text, and the forward that committed it


@dataclass(frozen=True)
class Said:
    """An answer, the tokens of its prompt, and the seconds it took."""

    answer: Answer
    prompt_tokens: int
    seconds: float


@dataclass
class Talk:
    """The turns so far, and how they are answered. `system` is an instruction before all of them."""

    speakers: dict[str, Speaker]
    max_new_tokens: int
    template: str = "auto"
    system: str | None = None
    stops: tuple[str, ...] = ()
    seed: int = 0
    kept_tokens: int = 0
    turns: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self):
        self.lanes: dict[str, Lane] = {}

    def answer(self, mode: str, question: str | None, show: Show) -> Said:
        """Answer a question, or with None the last one again, without keeping the answer. The text is shown as it
        becomes final. Raises `ValueError` if the conversation exceeds what the model can read."""
        turns = self.turns[:-1] if question is None else [*self.turns, {"role": "user", "content": question}]
        said = self.spoken(mode, turns, show)
        if question is not None:
            self.turns = [*turns, {"role": "assistant", "content": said.answer.text}]
        return said

    def spoken(self, mode: str, turns: list[dict[str, str]], show: Show) -> Said:
        speaker = self.speakers[mode]
        before = [{"role": "system", "content": self.system}] if self.system else []
        text = conversation(speaker.tokenizer, [*before, *turns], self.template)
        stop = StopStrings((*self.stops, *stops_of(speaker.tokenizer, self.template)), speaker.tokenizer)
        ids, growing, last = speaker.encode(text, self.max_new_tokens), Growing(speaker.tokenizer, stop.strings), 1
        ended: list[Event] = []

        def tell(event: Event) -> None:
            nonlocal last
            if not isinstance(event, Final):
                return ended.append(event)
            for token, forward in zip(event.tokens, event.forwards, strict=True):
                last = forward
                if piece := growing.more([token]):
                    show(piece, forward)

        self.decode(speaker, ids, stop, rule_of(speaker.decoder), tell)
        (done,) = ended
        answer = Answer.of(done.generation, stop, speaker.ends)
        told = len(growing.tokens)
        tell(Final(answer.generation.tokens[told:], answer.generation.step[told:]))
        if rest := growing.rest(answer.text):
            show(rest, last)
        return Said(answer, len(ids), done.seconds)

    def decode(
        self, speaker: Speaker, ids: list[int], stop: StopStrings, rule: CommitRule, tell: Callable[[Event], None]
    ) -> None:
        """Run the forwards of one prompt."""
        lane = self.lanes.setdefault(speaker.name, Lane(speaker, self.kept_tokens))
        drawn = generator(self.seed, len(self.turns), device=speaker.denoiser.model.device)
        request = Request([ids], self.max_new_tokens, speaker.ends, generator=drawn, stop=stop or None)
        lane.session.check(request)
        job = Job(speaker.name, request, rule, tell)
        lane.add(job)
        try:
            while lane.jobs:
                lane.step()
        except BaseException:
            del self.lanes[speaker.name]  # a forward may have been half done
            raise
