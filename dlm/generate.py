"""Decode with a converted model and watch it: `python -m dlm.generate prompt="reverse:ABCDEFG="`, of one that reads
images also `image=picture.png prompt="What is it?"`.

Every forward commits some of the masked tokens of the current block. On a terminal the canvas is drawn after each
forward; at the end every token is shown with the number and the colour of the forward that committed it.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, ListConfig
from PIL.Image import Image
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from dlm.config.arguments import quoted
from dlm.config.build import default_decoding, make, requested_decoding
from dlm.config.command_line import hydra_command
from dlm.config.finished import FinishedRun
from dlm.config.kinds import require_options
from dlm.config.settings import Generate
from dlm.data.packing import adds_bos
from dlm.data.picture_files import Unreadable, file_of, opened
from dlm.data.pictures import processed, rendered, require_processor
from dlm.decoding.base import Decoder
from dlm.decoding.engine.canvas import Canvas, Generation
from dlm.decoding.engine.lengths import room
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.stops import StopStrings
from dlm.decoding.fixed import Fixed
from dlm.model.denoiser import Denoiser
from dlm.model.eos import eos_ids
from dlm.model.packed_linears import PackedLinears
from dlm.model.positions import require_positions
from dlm.runs.run import Run
from dlm.types import Images, generator

MASKED, NEW = "░", "bold black on green"
COLOURS = ("yellow", "green", "cyan", "blue", "magenta", "red")  # from the first forward to the last
SPACES = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})
INDENT = 13  # columns of the labels

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
        total = room(len(ids) + max_new_tokens, self.denoiser.pattern.block_size, self.decoder.loop.sliding)
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


def printable(text: str) -> str:
    """Replace control characters: the output of a model may hold escape codes for the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text of a token within a longer text; at the beginning, some tokenizers drop its space."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    return printable(tokenizer.decode([*anchor, token]).removeprefix(tokenizer.decode(anchor)))


def rates(tokens: int, nfe: int, seconds: float) -> str:
    """The cost of an answer in words: forwards, tokens per forward, and tokens per second."""
    return f"{tokens} tokens in {nfe} forwards (NFE): TPF {tokens / nfe:.2f}, {tokens / seconds:.0f} tokens/s"


def frame(canvas: Canvas, tokenizer: PreTrainedTokenizerBase, ends: list[int], name: str, seconds: float) -> Text:
    """Draw the canvas of a single prompt after a forward, up to the first of `ends`. Tokens committed by this forward
    are marked, masked positions are grey boxes. The line below has the rates so far."""
    begin, nfe = int(canvas.prompt_length[0]), int(canvas.nfe[0])
    prompt = canvas.x[0, :begin]
    if canvas.pictures is not None:
        prompt = prompt[~canvas.pictures.context.given[0, :begin]]  # without the tokens of images
    text = Text(name.ljust(INDENT)).append(printable(tokenizer.decode(prompt)), "dim")
    committed = 0
    for slot in range(begin, begin + canvas.max_new_tokens):
        if canvas.masked[0, slot]:
            text.append(MASKED, "bright_black")
            continue
        token, committed = int(canvas.x[0, slot]), committed + 1
        text.append(token_text(tokenizer, token), NEW if int(canvas.step[0, slot]) == nfe else "")
        if token in ends:
            break
    return text.append(f"\n{'':{INDENT}}{rates(committed, nfe, seconds)}", "dim")


def style_of(step: int, nfe: int) -> str:
    """The colour of the forward `step` (from 1) of `nfe`."""
    return COLOURS[(step - 1) * len(COLOURS) // nfe]


def annotated(generation: Generation, tokenizer: PreTrainedTokenizerBase, width: int) -> Text:
    """Draw every token in the colour of the forward that committed it, the number of that forward below it, and a
    legend. Lines of tokens are at most `width` columns wide."""
    lines = [(Text("  tokens".ljust(INDENT)), Text("  forward".ljust(INDENT)))]
    for token, step in zip(generation.tokens, generation.step, strict=True):
        text = token_text(tokenizer, token).translate(SPACES)
        columns = max(cell_len(text), len(str(step))) + 1
        if lines[-1][0].cell_len + columns > width:
            lines.append((Text(" " * INDENT), Text(" " * INDENT)))
        tokens, steps = lines[-1]
        tokens.append(text, style_of(step, generation.nfe)).append(" " * (columns - cell_len(text)))
        steps.append(str(step).ljust(columns), "dim")
    legend = Text("  committed".ljust(INDENT)).append("by forward ")
    for style, steps in itertools.groupby(range(1, generation.nfe + 1), lambda step: style_of(step, generation.nfe)):
        first, *rest = steps
        legend.append(f" ■ {first}" + (f"–{rest[-1]}" if rest else ""), style)
    return Text("\n").join([line for pair in lines for line in pair] + [legend])


def live_answer(
    speaker: Speaker, ids: list[int], images: Images | None, options: dict, console: Console, delay: float | None
) -> Answer:
    """The answer to a prompt. If `delay`, in seconds, is not None, the canvas is drawn after each forward, followed by
    that pause."""
    if delay is None:
        return speaker.answer(ids, **options, images=images)
    with Live(console=console, auto_refresh=False, transient=True) as screen:

        def draw(canvas: Canvas, seconds: float) -> None:
            lines = frame(canvas, speaker.tokenizer, speaker.ends, speaker.name, seconds).wrap(console, console.width)
            screen.update(Text("\n").join(lines[-console.height :]), refresh=True)  # the last lines, if too many
            time.sleep(delay)

        return speaker.answer(ids, **options, on_frame=draw, images=images)


def show(speaker: Speaker, answer: Answer, console: Console) -> None:
    """Print an answer, its cost, and for a dLM the forward that committed each token."""
    text = Text(speaker.name.ljust(INDENT)).append(printable(answer.text), "bold")
    console.print(text, soft_wrap=True)
    generation = answer.generation
    if speaker.denoiser.pattern.noisy_stream:  # AR commits one token per forward, in order
        console.print(annotated(generation, speaker.tokenizer, console.width), soft_wrap=True)
    cost = rates(len(generation.tokens), generation.nfe, answer.seconds)
    console.print(Text(f"  {cost}", "dim"), soft_wrap=True)


def texts(value: str | ListConfig | None) -> list[str]:
    """The texts of an option that is one text or a list; an unset option gives [""]."""
    values = value if isinstance(value, ListConfig) else [value]
    return ["" if v is None else str(v) for v in values]


def pictures(value: str | ListConfig | None) -> list[Image]:
    """The pictures of the files that an option names. Raises `ValueError` for one that is missing or damaged."""
    try:
        return [opened(file_of(path, Path.cwd())) for path in texts(value) if path]
    except Unreadable as error:
        raise ValueError(f"image {error.name!r} is {error.reason}: name a picture that Pillow can open") from error


def standard_input() -> str:
    """The text on standard input. Raises `ValueError` if it is not UTF-8."""
    sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is no text in UTF-8 ({error}): convert it, as iconv -t UTF-8 does") from error


def check(cfg: DictConfig) -> None:
    """Raises `ValueError` for options that are wrong for any model."""
    require_options(cfg, "generate", Generate)
    if cfg.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {cfg.max_new_tokens} must be at least 1")
    if cfg.delay < 0:
        raise ValueError(f"delay {cfg.delay} must be at least 0 seconds")
    if cfg.live not in (True, False, "auto"):
        raise ValueError(f"live {cfg.live!r} must be true, false or auto")
    for name in ("prompt", "image", "stop"):
        for text in texts(cfg[name]):
            if any("\ud800" <= c <= "\udfff" for c in text):  # Python's encoding of bytes that are not UTF-8
                raise ValueError(f"{name} {text!r} is no text in UTF-8: convert it, as iconv -t UTF-8 does")
    if "" in texts(cfg.stop):
        raise ValueError("stop holds an empty text, which is in every answer: leave it out")


def speakers(cfg: DictConfig, run: Run) -> list[Speaker]:
    """The dLM of a run and, with `parent=true`, its parent."""
    finished, requested = FinishedRun(run, cfg.device), requested_decoding(cfg, default_decoding(run.config))
    decoder = make(requested) if requested else finished.decoder
    models = [Speaker("dLM", finished.dlm, finished.converted.tokenizer, decoder, finished.converted.processor)]
    if cfg.parent:
        parent = finished.parent
        models.append(Speaker("parent (AR)", finished.ar, parent.tokenizer, Fixed(1), parent.processor))
    return models


def literal(argument: str) -> str:
    """Quote the value of a text option for Hydra, as in `prompt=any, text=`, so that a shell's quotes suffice. Lists
    and quoted strings stay as they are."""
    key, _, value = argument.partition("=")
    if key not in ("prompt", "stop", "image") or value[:1] in ("'", '"', "["):
        return argument
    return f"{key}={quoted(value)}"


@hydra_command("generate", read=literal)
def main(cfg: DictConfig) -> None:
    check(cfg)
    run = Run.newest(cfg.runs_dir) if cfg.run is None else Run.load(str(cfg.run), cfg.runs_dir)
    prompts = [standard_input()] if cfg.prompt == "-" else texts(cfg.prompt)
    shown = pictures(cfg.image)
    models = speakers(cfg, run)
    encoded = [[speaker.encode_with(prompt, shown, cfg.max_new_tokens) for speaker in models] for prompt in prompts]
    console = Console(force_terminal=True if cfg.live is True else None)
    delay = cfg.delay if cfg.live is True or (cfg.live == "auto" and console.is_terminal) else None
    options = {"max_new_tokens": cfg.max_new_tokens, "stops": texts(cfg.stop), "seed": cfg.seed}
    console.print(Text("run".ljust(INDENT)).append(run.id, "dim"))
    if shown:
        names = (Path(path).name for path in texts(cfg.image))
        console.print(Text("image".ljust(INDENT)).append(printable(", ".join(names)), "dim"), soft_wrap=True)
    with ExitStack() as linears:
        for speaker in models:
            linears.enter_context(PackedLinears(speaker.denoiser.model))
        for prompt, of_models in zip(prompts, encoded, strict=True):
            console.print(Text("\nprompt".ljust(INDENT + 1)).append(printable(prompt), "dim"), soft_wrap=True)
            for speaker, (ids, images) in zip(models, of_models, strict=True):
                show(speaker, live_answer(speaker, ids, images, options, console, delay), console)


if __name__ == "__main__":
    main()
