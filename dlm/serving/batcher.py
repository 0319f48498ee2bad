"""The worker of a server: one thread owns the models, and decodes the prompts of all clients side by side.

A job waits until there is room in the session of its mode, joins it between two forwards, and leaves when it is
finished or cancelled. What it becomes does not depend on the others (see `dlm.decoding.engine.session`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dlm.decoding.engine.canvas import Canvas, Generation
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.session import Session
from dlm.watch.speaker import Speaker
from dlm.watch.trace import Recorder, Step

log = logging.getLogger(__name__)


class Busy(Exception):
    """As many jobs wait as may."""


@dataclass(frozen=True)
class Final:
    """New tokens of an answer that no later forward changes, and the forwards (from 1) that committed them."""

    tokens: list[int]
    forwards: list[int]


@dataclass(frozen=True)
class Done:
    """An answer, and the seconds from the first forward to the last."""

    generation: Generation
    seconds: float


Event = Final | Step | Done | Exception


@dataclass(eq=False)
class Job:
    """A prompt to be answered: a `request` of it alone, and the rule that decides. `tell` is called with its events in
    the thread of the worker: new final tokens, if `traced` every forward, and at last a `Done` or an error."""

    mode: str
    request: Request
    rule: CommitRule
    tell: Callable[[Event], None]
    traced: bool = False
    cancelled: bool = False
    told: int = field(default=0, init=False)  # final tokens
    begun: float = field(default=0.0, init=False)


class Lane:
    """The session of a mode, and the jobs of its sequences."""

    def __init__(self, speaker: Speaker, kept_tokens: int):
        self.speaker, self.kept_tokens = speaker, kept_tokens
        self.jobs: dict[int, Job] = {}  # by ticket
        self.session = self.new_session()

    def new_session(self) -> Session:
        return self.speaker.decoder.session(self.speaker.denoiser, self.kept_tokens)

    def add(self, job: Job) -> None:
        recorder, ticket = Recorder(self.speaker.tokenizer), -1
        job.begun = time.perf_counter()

        def on_step(canvas: Canvas) -> None:
            for row in (canvas.index == ticket).nonzero()[:, 0].tolist():
                if step := recorder.see(canvas, time.perf_counter() - job.begun, row):
                    job.tell(step)

        request = replace(job.request, on_step=on_step) if job.traced else job.request
        (ticket,) = self.session.add(request, job.rule)
        self.jobs[ticket] = job

    def drop_cancelled(self) -> None:
        for ticket in [ticket for ticket, job in self.jobs.items() if job.cancelled]:
            del self.jobs[ticket]
            self.session.remove(ticket)

    def step(self) -> int:
        """Run a forward and tell every job what is new. Returns how many sequences it was of."""
        count = len(self.session)
        self.session.step()
        for ticket, canvas, row in self.session.places():
            tell_final(self.jobs[ticket], canvas, row)
        for ticket, generation in self.session.harvest().items():
            job = self.jobs.pop(ticket)
            job.tell(Done(generation, time.perf_counter() - job.begun))
        return count

    def fail(self, error: Exception) -> None:
        """Tell every job that its forward has failed, and begin again."""
        jobs, self.jobs = self.jobs, {}
        self.session = self.new_session()
        for job in jobs.values():
            job.tell(error)


def tell_final(job: Job, canvas: Canvas, row: int) -> None:
    """Tell a job the tokens before its current block."""
    begin = int(canvas.prompt_length[row])
    final = min(int(canvas.start[row]) - begin, job.request.max_new_tokens)
    if final > job.told:
        span = slice(begin + job.told, begin + final)
        job.tell(Final(canvas.x[row, span].tolist(), canvas.step[row, span].tolist()))
        job.told = final


class Batcher:
    """Decodes jobs by the speakers of their modes, up to `max_batch` side by side in each mode, while up to `max_queue`
    wait. Each mode keeps up to `kept_tokens` tokens for prompts that begin in the same way. `on_forward(mode,
    sequences, seconds)` is called after every forward."""

    def __init__(
        self,
        speakers: Mapping[str, Speaker],
        max_batch: int,
        max_queue: int,
        kept_tokens: int,
        on_forward: Callable[[str, int, float], Any] = lambda *forward: None,
    ):
        self.lanes = {name: Lane(speaker, kept_tokens) for name, speaker in speakers.items()}
        self.max_batch, self.max_queue, self.on_forward = max_batch, max_queue, on_forward
        self.waiting: deque[Job] = deque()
        self.wake, self.closing = threading.Condition(), False
        self.thread = threading.Thread(target=self.work, name="decoding", daemon=True)
        self.thread.start()

    def submit(self, *jobs: Job) -> None:
        """Let jobs wait for their turn, all or none. Raises `Busy` if more would wait than may."""
        with self.wake:
            if self.closing:
                raise Busy("the server is shutting down")
            if len(self.waiting) + len(jobs) > self.max_queue:
                raise Busy(
                    f"{len(self.waiting)} prompts wait and {len(jobs)} would more, of at most {self.max_queue}: try "
                    "again later"
                )
            self.waiting.extend(jobs)
            self.wake.notify()

    def cancel(self, *jobs: Job) -> None:
        """Let jobs leave, wherever they are. Nothing happens to those that are finished."""
        with self.wake:
            for job in jobs:
                job.cancelled = True
            self.waiting = deque(job for job in self.waiting if not job.cancelled)
            self.wake.notify()

    def close(self) -> None:
        """End the thread; jobs that are not finished end with an error."""
        with self.wake:
            self.closing = True
            self.wake.notify()
        self.thread.join()

    @property
    def running(self) -> int:
        """The number of sequences that are being decoded."""
        return sum(len(lane.jobs) for lane in self.lanes.values())

    def work(self) -> None:
        while not self.closing:
            for job in self.next_jobs():
                try:
                    self.lanes[job.mode].add(job)
                except Exception as error:  # of one job; the others go on
                    job.tell(error)
            for name, lane in self.lanes.items():
                self.forward(name, lane)
        for lane in self.lanes.values():
            lane.fail(Busy("the server is shutting down"))
        for job in self.waiting:
            job.tell(Busy("the server is shutting down"))

    def forward(self, name: str, lane: Lane) -> None:
        lane.drop_cancelled()
        if not lane.session:
            return
        begin = time.perf_counter()
        try:
            count = lane.step()
        except Exception as error:  # the jobs of this mode are lost, the server is not
            log.exception("a forward of %d sequences in mode %s has failed", len(lane.jobs), name)
            return lane.fail(error)
        self.on_forward(name, count, time.perf_counter() - begin)

    def next_jobs(self) -> list[Job]:
        """The jobs that join, in the order in which they came. Waits while there is nothing to do."""
        with self.wake:
            self.wake.wait_for(lambda: self.closing or self.waiting or self.running)
            free = {name: self.max_batch - len(lane.jobs) for name, lane in self.lanes.items()}
            joining, waiting = [], deque()
            for job in self.waiting:
                (joining if free[job.mode] > 0 else waiting).append(job)
                free[job.mode] -= 1
            self.waiting = waiting
            return joining
