"""Talk with a converted model in the terminal: `python -m dlm.chat run=ID`, of one that reads images also about
pictures: `/image scene.png`.

An answer appears block by block, as it is committed; the colour of a token is that of the forward that committed it.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from dlm.config.arguments import literal, texts
from dlm.config.build import requested_decoding
from dlm.config.command_line import hydra_command
from dlm.config.finished import found
from dlm.config.kinds import require_options
from dlm.config.settings import Chat
from dlm.data.picture_files import read_pictures
from dlm.model.packed_linears import PackedLinears
from dlm.serving.modes import DIFFUSION, modes, require_template
from dlm.serving.talk import Said, Talk
from dlm.watch.pieces import printable
from dlm.watch.terminal import COLOURS, rates

PARENT = "parent"
HELP = {
    "diffusion": "answer by diffusion",
    "ar": "answer with the same weights, one token per forward",
    "speculate": "answer as /ar would, in fewer forwards: the dLM drafts, AR verifies",
    "parent": "the AR parent's answer to the last question, which is not kept",
    "image": "PATH, or several: pictures for the next message; without a path it gets none",
    "images": "list the pictures of the conversation and of the next message",
    "reset": "forget the conversation and its pictures",
    "quit": "end",
}


class Chatting:
    """The loop of a conversation on a console."""

    def __init__(self, talk: Talk, console: Console):
        self.talk, self.console, self.mode = talk, console, DIFFUSION

    def run(self, lines: Iterator[str]) -> None:
        """Answer lines until there are none, or /quit. A wrong line is told, and the next is read."""
        for line in lines:
            text = line.strip()
            if text == "/quit":
                return
            try:
                if text.startswith("/"):
                    self.command(text.removeprefix("/"))
                elif text:
                    self.answer(self.mode, text)
            except ValueError as error:
                self.note(f"error: {error}")
            except KeyboardInterrupt:
                self.note("\nstopped: the question is forgotten")

    def command(self, name: str) -> None:
        if name == "reset":
            self.talk.forget()
            self.note("the conversation is forgotten")
        elif name.split(maxsplit=1)[:1] == ["image"]:
            self.attach(name.removeprefix("image").strip())
        elif name == "images":
            self.note("\n".join(listed(self.talk)) or "there are no pictures: /image PATH attaches one")
        elif name == PARENT and PARENT in self.talk.speakers:
            self.answer(PARENT, None)
        elif name in self.talk.speakers and name != PARENT:
            self.mode = name
            self.note(f"mode: {name}")
        elif name == "help":
            self.note("\n".join(f"/{name:10} {what}" for name, what in HELP.items()))
        else:
            self.note(f"/{name} is not known here: /help lists what is")

    def attach(self, paths: str) -> None:
        if not paths:
            self.talk.attached = []
            return self.note("the next message has no pictures")
        named = paths_of(paths)
        self.talk.attach(self.mode, [*zip(named, read_pictures(named), strict=True)])
        self.note(", ".join(map(told, self.talk.attached)) + ": with the next message")

    def answer(self, mode: str, question: str | None) -> None:
        if question is None and not self.talk.turns:
            raise ValueError("there is no question yet")
        said = self.talk.answer(mode, question, self.show)
        self.console.print()
        self.note(cost_of(mode, said))

    def show(self, piece: str, forward: int) -> None:
        colour = COLOURS[(forward - 1) % len(COLOURS)]
        self.console.print(Text(printable(piece), colour), end="", soft_wrap=True)

    def note(self, text: str) -> None:
        self.console.print(Text(printable(text), "dim"), soft_wrap=True)


def paths_of(text: str) -> list[str]:
    """The paths in a line: it as a whole, if that is a file, or else as a shell would read them, with quotes around
    spaces. Raises `ValueError` for a quote that does not end."""
    if os.path.isfile(os.path.expanduser(text)):
        return [text]
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"/image {text} cannot be read ({error}): put quotes around a path with spaces") from error


def told(part: dict[str, Any]) -> str:
    """A picture in words."""
    return "{} ({} x {} pixels)".format(os.path.basename(part["name"]), *part["image"].size)


def listed(talk: Talk) -> Iterator[str]:
    """A line for every picture, with the message of the user that has it."""
    messages = [turn["content"] for turn in talk.turns if turn["role"] == "user"]
    for number, content in enumerate(messages, 1):
        yield from (f"message {number}: {told(p)}" for p in content if isinstance(p, dict) and p["type"] == "image")
    yield from (f"the next message: {told(part)}" for part in talk.attached)


def cost_of(mode: str, said: Said) -> str:
    generation = said.answer.generation
    return f"  {mode}: {rates(len(generation.tokens), generation.nfe, said.seconds)}"


def typed(prompt: Callable[[], str]) -> Iterator[str]:
    """The lines that are typed, until the end of the input."""
    while True:
        try:
            yield input(prompt())
        except (EOFError, KeyboardInterrupt):
            return


def talk_of(cfg: DictConfig) -> Talk:
    opened = found(cfg.run, cfg.runs_dir, cfg.device)
    speakers = modes(opened, requested_decoding(cfg, OmegaConf.create(opened.decoding)), cfg.parent)
    stops = tuple(text for text in texts(cfg.stop) if text)
    options = {name: cfg[name] for name in ("max_new_tokens", "template", "system", "seed", "kept_tokens")}
    return Talk(speakers, stops=stops, **options)


@hydra_command("chat", read=literal)
def main(cfg: DictConfig) -> None:
    require_options(cfg, "chat", Chat)
    require_template(cfg.template)
    talk, console = talk_of(cfg), Console()
    with ExitStack() as linears:
        for model in {id(s.denoiser.model): s.denoiser.model for s in talk.speakers.values()}.values():
            linears.enter_context(PackedLinears(model))
        Chatting(talk, console).run(typed(lambda: "> " if sys.stdin.isatty() else ""))


if __name__ == "__main__":
    main()
