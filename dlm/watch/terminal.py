"""The terminal's view: the canvas after each forward, and at the end every token with the number and the colour of the
forward that committed it."""

from __future__ import annotations

import itertools
import time

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from dlm.decoding.engine.canvas import Canvas, Generation
from dlm.types import Images
from dlm.watch.pieces import printable, token_text
from dlm.watch.speaker import Answer, OnFrame, Speaker

MASKED, NEW = "░", "bold black on green"
COLOURS = ("yellow", "green", "cyan", "blue", "magenta", "red")  # from the first forward to the last
SPACES = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})
INDENT = 13  # columns of the labels


def rates(tokens: int, nfe: int, seconds: float) -> str:
    """The cost of an answer in words: forwards, tokens per forward, and tokens per second."""
    cost = f"{tokens} token{'s' * (tokens != 1)} in {nfe} forward{'s' * (nfe != 1)} (NFE)"
    return f"{cost}: TPF {tokens / nfe:.2f}, {tokens / seconds:.0f} tokens/s"


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
    speaker: Speaker,
    ids: list[int],
    images: Images | None,
    options: dict,
    console: Console,
    delay: float | None,
    on_frame: OnFrame | None = None,
) -> Answer:
    """The answer to a prompt. If `delay`, in seconds, is not None, the canvas is drawn after each forward, followed by
    that pause. `on_frame` is called after each forward, too."""
    if delay is None:
        return speaker.answer(ids, **options, on_frame=on_frame, images=images)
    with Live(console=console, auto_refresh=False, transient=True) as screen:

        def draw(canvas: Canvas, seconds: float) -> None:
            if on_frame is not None:
                on_frame(canvas, seconds)
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
