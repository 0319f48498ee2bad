"""Talk with a converted model in the terminal: `python -m dlm.chat run=ID`.

An answer appears block by block, as it is committed; the colour of a token is that of the forward that committed it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from dlm.config.arguments import literal, texts
from dlm.config.build import requested_decoding
from dlm.config.command_line import hydra_command
from dlm.config.finished import found
from dlm.config.kinds import require_options
from dlm.config.settings import Chat
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
    "reset": "forget the conversation",
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
            self.talk.turns = []
            self.note("the conversation is forgotten")
        elif name == PARENT and PARENT in self.talk.speakers:
            self.answer(PARENT, None)
        elif name in self.talk.speakers and name != PARENT:
            self.mode = name
            self.note(f"mode: {name}")
        elif name == "help":
            self.note("\n".join(f"/{name:10} {what}" for name, what in HELP.items()))
        else:
            self.note(f"/{name} is not known here: /help lists what is")

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
