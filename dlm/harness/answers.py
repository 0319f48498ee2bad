"""What a model has answered to benchmarks, one line of JSON each, kept so that another metric, another filter or the
same command after a kill asks the model nothing twice.

A file belongs to one model and one way of asking it: what the answer depends on besides the request is in its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlm.runs.digest import digest

KEY_DIGITS = 24


@dataclass(frozen=True)
class Answer:
    """The answer to one request and what it cost. Of a generation: its `text`, and the new `tokens` up to the stop, in
    `nfe` forwards. Of a likelihood: `log_p` in nats and whether it `is_greedy`, for so many scored `tokens`, from `nfe`
    noisy versions (see `dlm.evaluation.scores`). `seconds` is its share of the time of its batch; `cut` are the tokens
    of the context that the model's positions had no room for."""

    tokens: int
    nfe: int
    seconds: float
    cut: int = 0
    text: str = ""
    log_p: float = 0.0
    is_greedy: bool = False


class Answers:
    """The answers in a file, by the content of the request. Half a line, which a killed process leaves at the end, does
    not count."""

    def __init__(self, path: Path):
        self.path, self.found = path, {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                key = entry.pop("key")
                self.found[key] = Answer(**entry)

    def get(self, key: str) -> Answer | None:
        return self.found.get(key)

    def add(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """Keep further answers, at once on disk."""
        new = dict(answers)
        self.found |= new
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"\n{json.dumps({'key': key} | asdict(answer))}" for key, answer in new.items()))


def key_of(**request: Any) -> str:
    """The name of a request in its file."""
    return digest(request, KEY_DIGITS)


@dataclass
class Cost:
    """What the answers to the requests of one task took together. Of several requests that are one and the same, each
    counts."""

    requests: int = 0
    tokens: int = 0
    nfe: int = 0
    seconds: float = 0.0
    cut: int = 0  # requests whose context was cut

    def add(self, answer: Answer) -> None:
        self.requests += 1
        self.tokens, self.nfe = self.tokens + answer.tokens, self.nfe + answer.nfe
        self.seconds, self.cut = self.seconds + answer.seconds, self.cut + bool(answer.cut)

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def summary(self) -> dict[str, float | int | None]:
        """Forwards per request (`nfe`), tokens per forward (`tpf`), tokens per second, tokens per request, and the
        number of requests whose context was cut."""
        return {
            "requests": self.requests,
            "nfe": self.nfe / max(self.requests, 1),
            "tpf": self.tokens / max(self.nfe, 1),
            "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
            "tokens": self.tokens / max(self.requests, 1),
            "cut_contexts": self.cut,
        }
