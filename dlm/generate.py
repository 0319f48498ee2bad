"""Decode with a converted model and watch it: `python -m dlm.generate prompt="reverse:ABCDEFG="`.

Every forward commits some of the masked tokens of the current block. On a terminal the canvas is drawn after each of
them; at the end every token carries the number and the colour of the forward that committed it.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from omegaconf import DictConfig, ListConfig
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from dlm.config.arguments import quoted
from dlm.config.build import default_decoding, make, requested_decoding
from dlm.config.command_line import hydra_command
from dlm.config.finished import FinishedRun
from dlm.config.kinds import require_kinds
from dlm.config.settings import Generate
from dlm.data.packing import adds_bos
from dlm.decoding.base import Decoder
from dlm.decoding.engine.canvas import Canvas, Generation
from dlm.decoding.engine.lengths import room
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.model.denoiser import Denoiser
from dlm.model.eos import eos_ids
from dlm.model.packed_linears import PackedLinears
from dlm.model.positions import require_positions
from dlm.runs.run import Run
from dlm.types import generator

MASKED, NEW = "░", "bold black on green"
RAMP = ("yellow", "green", "cyan", "blue", "magenta", "red")  # from the first forward to the last
SPACES = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})
INDENT = 13  # columns of the labels

OnFrame = Callable[[Canvas, float], None]  # the canvas after a forward, and the seconds of decoding so far


@dataclass(frozen=True)
class Answer:
    """What a model made of one prompt: its text and its tokens, cut before a stop string, and the seconds it took."""

    text: str
    generation: Generation
    seconds: float


@dataclass(frozen=True)
class Speaker:
    """A model that answers prompts, the dLM or its parent."""

    name: str
    denoiser: Denoiser
    tokenizer: PreTrainedTokenizerBase
    decoder: Decoder

    @property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        return eos_ids(self.denoiser.model, self.tokenizer)

    def encode(self, prompt: str, max_new_tokens: int) -> list[int]:
        """The tokens of a prompt, with BOS where training had it; `ValueError` where it cannot be continued."""
        bos = [self.tokenizer.bos_token_id] if adds_bos(self.tokenizer) else []
        ids = bos + self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
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
        row = room(len(ids) + max_new_tokens, self.denoiser.pattern.block_size, self.decoder.sliding)
        what = f"the prompt's {len(ids)} tokens and max_new_tokens {max_new_tokens}, {row} up to the end of a block,"
        require_positions(self.denoiser.model, row, what, "shorten the prompt or lower max_new_tokens")
        return ids

    def answer(
        self, ids: list[int], max_new_tokens: int, stops: list[str], seed: int, on_frame: OnFrame | None = None
    ) -> Answer:
        """Continue the prompt `ids`; `stops` end it early. The time is that of decoding, without that of `on_frame`."""

        def stopped(tokens: list[int]) -> bool:
            text = self.tokenizer.decode(tokens)
            return any(stop in text for stop in stops)

        drawing = 0.0

        def on_step(canvas: Canvas) -> None:
            nonlocal drawing
            now = time.perf_counter()
            on_frame(canvas, now - begin - drawing)
            drawing += time.perf_counter() - now

        request = Request(
            [ids],
            max_new_tokens,
            self.ends,
            generator=generator(seed),
            stop=stopped if stops else None,
            on_step=on_step if on_frame else None,
        )
        self.decoder.generate(self.denoiser, Request([ids], 1, generator=generator(seed)))  # the first one is slow
        begin = time.perf_counter()
        (made,) = self.decoder.generate(self.denoiser, request)
        seconds = time.perf_counter() - begin - drawing
        return Answer(*cut(made, self.tokenizer, stops), seconds)


def cut(made: Generation, tokenizer: PreTrainedTokenizerBase, stops: list[str]) -> tuple[str, Generation]:
    """The text before the first stop string, and the tokens that lie before it. Every forward still counts."""
    text = tokenizer.decode(made.tokens)
    found = [text.index(stop) for stop in stops if stop in text]
    if not found:
        return tokenizer.decode(made.tokens, skip_special_tokens=True), made
    end = min(found)
    kept = next(n for n in range(len(made.tokens), -1, -1) if len(tokenizer.decode(made.tokens[:n])) <= end)
    lists = {name: getattr(made, name)[:kept] for name in ("tokens", "step", "confidence")}
    return text[:end], replace(made, **lists)


def printable(text: str) -> str:
    """Text that cannot steer a terminal: what a model writes may hold escape codes."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as it reads inside a text: some tokenizers drop the space of the first one."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    return printable(tokenizer.decode([*anchor, token]).removeprefix(tokenizer.decode(anchor)))


def rates(tokens: int, nfe: int, seconds: float) -> str:
    """What an answer cost, in words."""
    return f"{tokens} tokens in {nfe} forwards (NFE): TPF {tokens / nfe:.2f}, {tokens / seconds:.0f} tokens/s"


def frame(canvas: Canvas, tokenizer: PreTrainedTokenizerBase, ends: list[int], name: str, seconds: float) -> Text:
    """The canvas of a single prompt after a forward, up to one of `ends`: what this forward committed is marked, masked
    positions are grey boxes. Below it the count so far."""
    begin, nfe = int(canvas.prompt_length[0]), int(canvas.nfe[0])
    text = Text(name.ljust(INDENT)).append(printable(tokenizer.decode(canvas.x[0, :begin])), "dim")
    committed = 0
    for slot in range(begin, begin + canvas.max_new_tokens):
        if canvas.masked[0, slot]:
            text.append(MASKED, "bright_black")
            continue
        token, committed = int(canvas.x[0, slot]), committed + 1
        text.append(piece(tokenizer, token), NEW if int(canvas.step[0, slot]) == nfe else "")
        if token in ends:
            break
    return text.append(f"\n{'':{INDENT}}{rates(committed, nfe, seconds)}", "dim")


def style_of(step: int, nfe: int) -> str:
    """The colour of the forward `step` (from 1) of `nfe`."""
    return RAMP[(step - 1) * len(RAMP) // nfe]


def annotated(made: Generation, tokenizer: PreTrainedTokenizerBase, width: int) -> Text:
    """Every token in the colour of the forward that committed it, the number of that forward below it, and a legend.
    Lines of tokens are at most `width` columns wide."""
    lines = [(Text("  tokens".ljust(INDENT)), Text("  forward".ljust(INDENT)))]
    for token, step in zip(made.tokens, made.step, strict=True):
        shown = piece(tokenizer, token).translate(SPACES)
        cells = max(cell_len(shown), len(str(step))) + 1
        if lines[-1][0].cell_len + cells > width:
            lines.append((Text(" " * INDENT), Text(" " * INDENT)))
        tokens, steps = lines[-1]
        tokens.append(shown, style_of(step, made.nfe)).append(" " * (cells - cell_len(shown)))
        steps.append(str(step).ljust(cells), "dim")
    legend = Text("  committed".ljust(INDENT)).append("by forward ")
    for style, steps in itertools.groupby(range(1, made.nfe + 1), lambda step: style_of(step, made.nfe)):
        first, *rest = steps
        legend.append(f" ■ {first}" + (f"–{rest[-1]}" if rest else ""), style)
    return Text("\n").join([line for pair in lines for line in pair] + [legend])


def watched(speaker: Speaker, ids: list[int], options: dict, console: Console, delay: float | None) -> Answer:
    """The answer to a prompt, drawn as it comes where `delay` is not None: seconds to wait after each forward."""
    if delay is None:
        return speaker.answer(ids, **options)
    with Live(console=console, auto_refresh=False, transient=True) as screen:

        def draw(canvas: Canvas, seconds: float) -> None:
            lines = frame(canvas, speaker.tokenizer, speaker.ends, speaker.name, seconds).wrap(console, console.width)
            screen.update(Text("\n").join(lines[-console.height :]), refresh=True)  # the end of what is too long
            time.sleep(delay)

        return speaker.answer(ids, **options, on_frame=draw)


def show(speaker: Speaker, found: Answer, console: Console) -> None:
    """Print an answer, what it cost, and for a dLM which forward committed which token."""
    text = Text(speaker.name.ljust(INDENT)).append(printable(found.text), "bold")
    console.print(text, soft_wrap=True)
    made = found.generation
    if speaker.denoiser.pattern.noisy_stream:  # AR commits one token after the other
        console.print(annotated(made, speaker.tokenizer, console.width), soft_wrap=True)
    console.print(Text(f"  {rates(len(made.tokens), made.nfe, found.seconds)}", "dim"), soft_wrap=True)


def texts(value: str | ListConfig | None) -> list[str]:
    """The texts that an option names: one or a list."""
    values = value if isinstance(value, ListConfig) else [value]
    return ["" if v is None else str(v) for v in values]


def standard_input() -> str:
    """The text on standard input; `ValueError` for bytes that are none."""
    sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is no text in UTF-8 ({error}): convert it, as iconv -t UTF-8 does") from error


def check(cfg: DictConfig) -> None:
    """Refuse what is wrong whatever the model."""
    require_kinds(cfg, Generate)
    if cfg.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {cfg.max_new_tokens} must be at least 1")
    if cfg.delay < 0:
        raise ValueError(f"delay {cfg.delay} must be at least 0 seconds")
    if cfg.live not in (True, False, "auto"):
        raise ValueError(f"live {cfg.live!r} must be true, false or auto")
    for name in ("prompt", "stop"):
        for text in texts(cfg[name]):
            if any("\ud800" <= c <= "\udfff" for c in text):  # how Python holds the bytes of an argument
                raise ValueError(f"{name} {text!r} is no text in UTF-8: convert it, as iconv -t UTF-8 does")
    if "" in texts(cfg.stop):
        raise ValueError("stop holds an empty text, which is in every answer: leave it out")


def speakers(cfg: DictConfig, run: Run) -> list[Speaker]:
    """The dLM of a run, and its parent where it is asked for."""
    finished, own = FinishedRun(run), default_decoding(run.config)
    decoder = make(requested_decoding(cfg, own) or own)
    found = [Speaker("dLM", finished.dlm, finished.converted.tokenizer, decoder)]
    if cfg.parent:
        found.append(Speaker("parent (AR)", finished.ar, finished.parent.tokenizer, Fixed(1)))
    return found


def literal(argument: str) -> str:
    """`prompt=any, text=` as Hydra's quoted string, so that a shell's quotes are enough. Lists and strings that are
    quoted already stay as they are."""
    key, _, value = argument.partition("=")
    if key not in ("prompt", "stop") or value[:1] in ("'", '"', "["):
        return argument
    return f"{key}={quoted(value)}"


@hydra_command("generate", read=literal)
def main(cfg: DictConfig) -> None:
    check(cfg)
    run = Run.newest(cfg.runs_dir) if cfg.run is None else Run.load(str(cfg.run), cfg.runs_dir)
    prompts = [standard_input()] if cfg.prompt == "-" else texts(cfg.prompt)
    heard = speakers(cfg, run)
    tokens = [[speaker.encode(prompt, cfg.max_new_tokens) for speaker in heard] for prompt in prompts]
    console = Console(force_terminal=True if cfg.live is True else None)
    delay = cfg.delay if cfg.live is True or (cfg.live == "auto" and console.is_terminal) else None
    options = {"max_new_tokens": cfg.max_new_tokens, "stops": texts(cfg.stop), "seed": cfg.seed}
    console.print(Text("run".ljust(INDENT)).append(run.id, "dim"))
    with ExitStack() as linears:
        for speaker in heard:
            linears.enter_context(PackedLinears(speaker.denoiser.model))
        for prompt, rows in zip(prompts, tokens, strict=True):
            console.print(Text("\nprompt".ljust(INDENT + 1)).append(printable(prompt), "dim"), soft_wrap=True)
            for speaker, ids in zip(heard, rows, strict=True):
                show(speaker, watched(speaker, ids, options, console, delay), console)


if __name__ == "__main__":
    main()
