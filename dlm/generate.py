"""Decode with a converted model and watch it: `python -m dlm.generate prompt="reverse:ABCDEFG="`.

Every forward commits some of the masked tokens of the current block. On a terminal the canvas is drawn after each of
them; at the end every token carries the number of the forward that committed it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from dlm.build import ar_denoiser, converted_denoiser, make
from dlm.console import command
from dlm.data.packing import adds_bos
from dlm.decoding.base import Decoder
from dlm.decoding.engine import Canvas, Generation, generate
from dlm.decoding.fixed import Fixed
from dlm.denoiser import Denoiser
from dlm.parent import Parent, load_parent
from dlm.runs import Run
from dlm.types import generator

MASKED, NEW = "░", "bold black on green"
STEP_STYLES = ("green", "cyan", "yellow", "magenta", "blue", "red")


@dataclass(frozen=True)
class Answer:
    """What a model made of one prompt: its text (cut at a stop string), the decode and the seconds it took."""

    text: str
    generation: Generation
    seconds: float

    def summary(self) -> str:
        g = self.generation
        tokens = len(g.tokens)
        return f"{tokens} tokens in {g.nfe} forwards ({g.tpf:.2f} per forward), {tokens / self.seconds:.0f} tokens/s"


def prompt_ids(parent: Parent, prompt: str, denoiser: Denoiser, max_new_tokens: int) -> list[int]:
    """The tokens of a prompt, with BOS where training had it; `ValueError` where it cannot be continued."""
    tokenizer, config = parent.tokenizer, denoiser.model.config.get_text_config()
    bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    ids = bos + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"prompt {prompt!r} is empty: give some text to continue")
    limit = getattr(config, "max_position_embeddings", None)
    if limit and len(ids) + max_new_tokens > limit:
        raise ValueError(
            f"the prompt's {len(ids)} tokens and max_new_tokens {max_new_tokens} exceed the model's {limit} positions: "
            "shorten the prompt or lower max_new_tokens"
        )
    return ids


def answer(
    denoiser: Denoiser,
    parent: Parent,
    ids: list[int],
    decoder: Decoder,
    max_new_tokens: int,
    stops: list[str],
    seed: int = 0,
    on_step: Callable[[Canvas], None] | None = None,
) -> Answer:
    """Decode one prompt; `stops` end it early and are not part of the text."""

    def stopped(tokens: list[int]) -> bool:
        text = parent.tokenizer.decode(tokens)
        return any(stop in text for stop in stops)

    begin = time.perf_counter()
    (made,) = generate(
        denoiser,
        [ids],
        decoder,
        max_new_tokens,
        parent.tokenizer.eos_token_id,
        generator=generator(seed),
        stop=stopped if stops else None,
        on_step=on_step,
    )
    seconds = time.perf_counter() - begin
    text = parent.tokenizer.decode(made.tokens, skip_special_tokens=True)
    cut = min((text.index(stop) for stop in stops if stop in text), default=len(text))
    return Answer(text[:cut], made, seconds)


def frame(canvas: Canvas, parent: Parent) -> Text:
    """The canvas of a single prompt after a forward: what this forward committed is marked, masked positions of the
    current block are blocks of grey."""
    begin, nfe = int(canvas.prompt_length[0]), int(canvas.nfe[0])
    end = min(int(canvas.start[0]) + canvas.block_size, int(canvas.length[0]))
    text = Text(f"forward {nfe:3d}  ", style="dim")
    text.append(parent.tokenizer.decode(canvas.x[0, :begin].tolist()), style="dim")
    for slot in range(begin, end):
        if canvas.masked[0, slot]:
            text.append(MASKED, style="bright_black")
        else:
            token = parent.tokenizer.decode([int(canvas.x[0, slot])])
            text.append(token, style=NEW if int(canvas.step[0, slot]) == nfe else "")
    return text


def coloured(made: Generation, parent: Parent) -> Text:
    """Every token in the colour of the forward that committed it, and below it the number of that forward."""
    tokens, steps = Text("tokens   "), Text("forward  ", style="dim")
    for token, step in zip(made.tokens, made.step, strict=True):
        shown = parent.tokenizer.decode([token]).replace("\n", "⏎").strip() or "␣"
        width = max(len(shown), len(str(step))) + 1
        tokens.append(shown.ljust(width), style=STEP_STYLES[(step - 1) % len(STEP_STYLES)])
        steps.append(str(step).ljust(width))
    return Group(tokens, steps)


def show(prompt: str, run_id: str, found: Answer, parents: Answer | None, parent: Parent, console: Console) -> None:
    """Print the answers of one prompt."""
    console.print(Text("\nprompt   ").append(prompt, style="bold"))
    console.print(coloured(found.generation, parent))
    console.print(
        Text(f"dLM      {found.text}", style="bold green"), f"  [dim]run {run_id}: {found.summary()}[/dim]", sep=""
    )
    if parents is not None:
        console.print(Text(f"parent   {parents.text}", style="bold"), f"  [dim]{parents.summary()}[/dim]", sep="")


def prompts_of(value: str | list[str]) -> list[str]:
    """The prompts that `prompt=` names."""
    if value == "-":
        return [sys.stdin.read().rstrip("\n")]
    return [value] if isinstance(value, str) else list(value)


@hydra.main(version_base="1.3", config_path="../conf", config_name="generate")
@command
def main(cfg: DictConfig) -> None:
    run = Run.newest(cfg.runs_dir) if cfg.run is None else Run.load(cfg.run, cfg.runs_dir)
    if not run.model_folder.exists():
        raise ValueError(f"run {run.id} is {run.status} and has no model: finish it with the command that began it")
    if cfg.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {cfg.max_new_tokens} must be at least 1")
    decoder = make(cfg.get("decoding") or run.config.decoding)
    converted = load_parent(str(run.model_folder), dtype=run.config.model.get("dtype", "float32"), check=False)
    dlm = converted_denoiser(run.config, converted)
    prompts = OmegaConf.to_container(cfg)["prompt"]
    wanted = [(p, prompt_ids(converted, p, dlm, cfg.max_new_tokens)) for p in prompts_of(prompts)]
    original = make(run.config.model, check=False) if cfg.parent else None
    console = Console()
    live = console.is_terminal if cfg.live is None else cfg.live
    options = {"max_new_tokens": cfg.max_new_tokens, "stops": list(cfg.stop), "seed": cfg.seed}
    for prompt, ids in wanted:
        found = watched(dlm, converted, ids, decoder, options, console, cfg.delay if live else None)
        parents = original and answer(ar_denoiser(original), original, ids, Fixed(1), **options)
        show(prompt, run.id, found, parents, converted, console)


def watched(denoiser, parent, ids, decoder, options: dict, console: Console, delay: float | None) -> Answer:
    """`answer`, drawn as it goes where `delay` is not None; the time is that of a second decode, without drawing."""
    if delay is not None:
        with Live(console=console, auto_refresh=False) as screen:

            def draw(canvas: Canvas) -> None:
                screen.update(frame(canvas, parent), refresh=True)
                time.sleep(delay)

            answer(denoiser, parent, ids, decoder, **options, on_step=draw)
    return answer(denoiser, parent, ids, decoder, **options)


if __name__ == "__main__":
    main()
