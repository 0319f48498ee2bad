"""What a server has done, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from dlm.serving.answers import Answer
    from dlm.serving.batcher import Batcher

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of requests, tokens and forwards, and what is going on."""

    def __init__(self):
        own = {"registry": CollectorRegistry()}
        self.registry = own["registry"]
        self.requests = Counter("dlm_requests", "Requests that were answered", ["path", "status"], **own)
        self.prompt_tokens = Counter("dlm_prompt_tokens", "Tokens of answered prompts", ["mode"], **own)
        self.tokens = Counter("dlm_tokens", "Tokens of answers", ["mode"], **own)
        self.nfe = Counter("dlm_nfe", "Forwards that the answers took, each its own", ["mode"], **own)
        self.forwards = Counter("dlm_forwards", "Forwards of the network, each of several sequences", ["mode"], **own)
        self.forward_seconds = Counter("dlm_forward_seconds", "Seconds of the forwards", ["mode"], **own)
        self.batch = Histogram("dlm_batch_size", "Sequences of a forward", ["mode"], buckets=SIZES, **own)
        self.seconds = Histogram("dlm_answer_seconds", "Seconds of an answer", ["mode"], buckets=SECONDS, **own)
        self.running = Gauge("dlm_running", "Sequences that are being decoded", **own)
        self.waiting = Gauge("dlm_waiting", "Prompts that wait", **own)

    def watch(self, batcher: Batcher) -> None:
        self.running.set_function(lambda: batcher.running)
        self.waiting.set_function(lambda: len(batcher.waiting))

    def forward(self, mode: str, sequences: int, seconds: float) -> None:
        self.forwards.labels(mode).inc()
        self.forward_seconds.labels(mode).inc(seconds)
        self.batch.labels(mode).observe(sequences)

    def answered(self, mode: str, prompt_tokens: int, answer: Answer, seconds: float) -> None:
        self.prompt_tokens.labels(mode).inc(prompt_tokens)
        self.tokens.labels(mode).inc(len(answer.generation.tokens))
        self.nfe.labels(mode).inc(answer.generation.nfe)
        self.seconds.labels(mode).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
