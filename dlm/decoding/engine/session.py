"""Sequences that are decoded side by side, and join and leave between forwards.

What a sequence becomes does not depend on who else is there: its tokens are drawn with the generator of its request, by
the rule of its request, and end with its own stop and length.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from dlm.attention.base import BlockAnchor
from dlm.decoding.engine.canvas import Canvas, Generation
from dlm.decoding.engine.graph import Replay
from dlm.decoding.engine.lengths import room, whole_blocks
from dlm.decoding.engine.mixed import Member, Mixed, same
from dlm.decoding.engine.prefixes import Prefixes
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.step import step
from dlm.model.denoiser import Denoiser

POLL = 4  # forwards between two reads of `finished` from a GPU; with free shapes it is read after every forward
FREE_ROWS = 128  # rows of a forward that a GPU computes in the time in which it reads the weights
BUCKET = 256  # fixed shapes have a multiple of this many slots, so that few shapes are compiled


class Session(ABC):
    """The sequences that a loop decodes; each has a ticket. Use it from one thread."""

    def __init__(self, denoiser: Denoiser, sliding: bool):
        self.denoiser, self.sliding = denoiser, sliding
        self.members: dict[int, Member] = {}  # by ticket
        self.next_ticket = itertools.count()

    def __len__(self) -> int:
        """The number of sequences that are being decoded."""
        return len(self.members)

    def check(self, request: Request) -> None:
        """Raises `ValueError` for a prompt that this session cannot continue (see `Request.check`)."""
        request.check(self.denoiser, self.sliding)

    @torch.no_grad()
    def add(
        self,
        request: Request,
        rule: CommitRule,
        index: Sequence[int] | None = None,
        tickets: Sequence[int] | None = None,
    ) -> list[int]:
        """Let prompts of a request join, by default all, and return their `tickets`, by default the next numbers: they
        are the `index` of the canvas. The prompts are decoded by `rule`. Raises `ValueError` for a rule or `eos_ids`
        that cannot be decoded with those of the sequences that are here."""
        index = [*(range(len(request.prompts)) if index is None else index)]
        member = Member(request, rule)
        for other in self.members.values():
            if other.request is request and other.rule is rule:
                member = other
            if other.rule.remask_below != rule.remask_below or other.request.eos_ids != request.eos_ids:
                raise ValueError(
                    f"remask_below {rule.remask_below} and eos_ids {request.eos_ids} must be those of the session, "
                    f"{other.rule.remask_below} and {other.request.eos_ids}"
                )
        tickets = [*(itertools.islice(self.next_ticket, len(index)) if tickets is None else tickets)]
        self.members |= dict.fromkeys(tickets, member)
        self.join(member, index, tickets)
        return tickets

    @torch.no_grad()
    def step(self) -> None:
        """Run a forward of every sequence, on a GPU several; or the first forward of those that have joined."""
        self.run()

    def harvest(self, keep_places: bool = False) -> dict[int, Generation]:
        """The generations of the sequences that have finished since the last call, by ticket. They have left, but with
        `keep_places` others can take their places."""
        finished = self.leave(keep_places)
        return {ticket: made for ticket, made in finished.items() if self.members.pop(ticket, None)}

    def remove(self, ticket: int) -> None:
        """Let a sequence leave before its end; `harvest` does not return it."""
        del self.members[ticket]
        for canvas in self.canvases():
            canvas.finished |= canvas.index == ticket

    def places(self) -> Iterator[tuple[int, Canvas, int]]:
        """Every sequence that is being decoded: its ticket, and where it is, its canvas and its row there."""
        for canvas in self.canvases():
            tickets = canvas.index.tolist()
            yield from ((tickets[n], canvas, n) for n in canvas.live if tickets[n] in self.members)

    @abstractmethod
    def canvases(self) -> list[Canvas]: ...

    @abstractmethod
    def join(self, member: Member, index: list[int], tickets: list[int]) -> None: ...

    @abstractmethod
    def run(self) -> None: ...

    @abstractmethod
    def leave(self, keep_places: bool) -> dict[int, Generation]: ...

    def forward(self, canvas: Canvas, run: Callable[[], None], members: list[Member]) -> None:
        """Run a forward of a canvas that holds sequences of these members. A sequence whose new tokens its `stop` takes
        for its end is finished, where it would begin another block."""
        stops = any(member.request.stop is not None for member in members)
        start = canvas.start.clone() if stops else None
        run()
        if stops:
            tickets, filled = canvas.index.tolist(), canvas.filled()
            for n in ((canvas.start != start) & ~canvas.finished).nonzero()[:, 0].tolist():
                stop = self.members[tickets[n]].request.stop
                tokens = canvas.x[n, canvas.prompt_length[n] : filled[n]].tolist()
                if stop is not None and stop(tokens):
                    canvas.finished[n] = True
        for request in {id(member.request): member.request for member in members}.values():
            request.report(canvas)


class BlockSession(Session):
    """All sequences are on one canvas, whose every forward is one of all of them. Those that have joined since the last
    forward are first read by one of their own. The canvas has at least `num_slots` slots; it grows where a prompt needs
    more. With `kept_tokens`, prompts that begin as one that has left are not read again, as far as that many tokens of
    those are kept and the pattern can be cached."""

    def __init__(
        self,
        denoiser: Denoiser,
        sliding: bool,
        num_slots: int = 0,
        compile: bool = False,
        replay: bool = True,
        kept_tokens: int = 0,
    ):
        super().__init__(denoiser, sliding)
        keeps = kept_tokens > 0 and denoiser.pattern.cacheable and not sliding
        keeps &= denoiser.pattern.block_anchor is BlockAnchor.ABSOLUTE  # else its blocks depend on a prompt's length
        self.prefixes = Prefixes(denoiser, kept_tokens) if keeps else None
        self.fixed_shapes = compile or denoiser.model.device.type != "cpu"
        self.num_slots, self.compile, self.replay = num_slots, compile, replay
        self.canvas: Canvas | None = None
        self.arriving: list[tuple[Canvas, list[int]]] = []  # with their tickets
        self.repeated: tuple[CommitRule, Replay] | None = None  # the step by one rule, which may be recorded

    def canvases(self):
        return [canvas for canvas, _ in self.arriving] + ([] if self.canvas is None else [self.canvas])

    def join(self, member, index, tickets):
        request, pattern = member.request, self.denoiser.pattern
        longest = max(room(len(request.prompts[n]) + request.max_new_tokens, pattern, self.sliding) for n in index)
        num_slots = max(longest, self.num_slots)
        num_slots = whole_blocks(num_slots, BUCKET) if self.fixed_shapes else num_slots
        canvas = Canvas(self.denoiser, request, index, num_slots, self.fixed_shapes, self.sliding)
        canvas.index = torch.tensor(tickets, device=canvas.x.device)
        self.arriving.append((canvas, tickets))

    def run(self):
        if self.arriving:
            return self.receive()
        canvas, members = self.canvas, list(self.members.values())
        one_step = self.one_step(members)
        if canvas.pictures is not None:
            canvas.pictures.settle(canvas.written, canvas.finished)
        for _ in range(POLL if self.fixed_shapes else 1):
            canvas.make_room_for_pending(self.fixed_shapes and has_costly_padding(self.denoiser, canvas))
            self.forward(canvas, partial(one_step, canvas), members)

    def receive(self) -> None:
        """The first forward of those that have joined, who then are on the canvas with the others."""
        present = [(canvas, t) for canvas, tickets in self.arriving if (t := self.members.keys() & set(tickets))]
        members = [self.members[ticket] for _, tickets in present for ticket in sorted(tickets)]
        self.arriving = []
        if members:
            new = functools.reduce(Canvas.join, (canvas for canvas, _ in present))
            if self.prefixes is not None:
                self.prefixes.fill(new)
            rule, generator = self.decision(new, members)
            self.forward(new, partial(step, self.denoiser, new, rule, generator), members)
            # One that is unlike holds only sequences that were removed: `add` refuses others.
            self.canvas = self.canvas.join(new) if self.canvas is not None and self.canvas.is_like(new) else new

    def leave(self, keep_places):
        keep_places = self.fixed_shapes and (keep_places or bool(self.arriving))
        if self.prefixes is not None and self.canvas is not None:
            finished = self.canvas.finished.tolist()
            for row in (row for row in self.canvas.live if finished[row]):
                self.prefixes.keep(self.canvas, row)
        generations = {} if self.canvas is None else self.canvas.harvest(keep_places)
        if self.canvas is not None and not self.canvas.live and not keep_places:
            self.canvas = None
        return generations

    def decision(self, canvas: Canvas, members: list[Member]) -> tuple[CommitRule, torch.Generator | None]:
        """The rule that decides for all sequences of a canvas, those of these members, and the generator it draws
        with."""
        groups: list[Member] = []
        for member in members:
            if not any(member.shares_draws(first) for first in groups):
                groups.append(member)
        if len(groups) == 1:
            return groups[0].rule, groups[0].request.generator
        present = [self.members.get(ticket) for ticket in canvas.index.tolist()]
        decides = [[m is not None and m.shares_draws(group) for m in present] for group in groups]
        return Mixed(canvas, [*zip(groups, torch.tensor(decides, device=canvas.x.device), strict=True)]), None

    def one_step(self, members: list[Member]) -> Callable[[Canvas], None]:
        """The step of the canvas, compiled and replayed where that is asked for and the step is closed: it needs
        nothing from the host and draws from no generator of the caller."""
        rule, generator = self.decision(self.canvas, members)
        device, stops = self.denoiser.model.device, any(member.request.stop is not None for member in members)
        records = self.replay and replays(device)
        if stops or rule.temperature > 0 or isinstance(rule, Mixed) or not (self.compile or records):
            return partial(step, self.denoiser, rule=rule, generator=generator)
        if self.repeated is None or not same(self.repeated[0], rule):
            made = partial(step, self.denoiser, rule=rule.on(device) if self.compile else rule, compile=self.compile)
            self.repeated = rule, Replay(made, can_record=records)
        return self.repeated[1]


class BatchSession(Session):
    """The prompts that join together are a canvas of their own: each forward is one of them alone. `begin` makes the
    canvas of a request's prompts and the function that makes its forwards."""

    def __init__(
        self,
        denoiser: Denoiser,
        sliding: bool,
        begin: Callable[[Member, list[int]], tuple[Canvas, Callable[[], None]]],
        drops_finished: bool,
    ):
        super().__init__(denoiser, sliding)
        self.begin, self.drops_finished = begin, drops_finished
        self.batches: list[tuple[Canvas, Callable[[], None], Member]] = []

    def canvases(self):
        return [canvas for canvas, _, _ in self.batches]

    def join(self, member, index, tickets):
        canvas, forward = self.begin(member, index)
        canvas.index = torch.tensor(tickets, device=canvas.x.device)
        self.batches.append((canvas, forward, member))

    def remove(self, ticket):
        super().remove(ticket)
        self.batches = [batch for batch in self.batches if self.members.keys() & set(batch[0].index.tolist())]

    def run(self):
        for canvas, forward, member in self.batches:
            self.forward(canvas, forward, [member])

    def leave(self, keep_places):
        generations: dict[int, Generation] = {}
        for canvas in self.canvases():
            generations |= canvas.harvest(keep_places=not self.drops_finished)
        self.batches = [batch for batch in self.batches if batch[0].live]
        return generations


def has_costly_padding(denoiser: Denoiser, canvas: Canvas) -> bool:
    """Whether the rows for pending tokens, of which there are none in most steps, cost more than to ask for them."""
    pattern = denoiser.pattern
    return pattern.cacheable and pattern.noisy_stream and 2 * canvas.block_size * len(canvas) > FREE_ROWS


def replays(device: torch.device) -> bool:
    """Whether a step can be replayed as a CUDA graph on this device."""
    return device.type == "cuda"
