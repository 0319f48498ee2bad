"""Decode with a converted model and watch it: `python -m dlm.generate prompt="reverse:ABCDEFG="`, of one that reads
images also `image=picture.png prompt="What is it?"`.

Every forward commits some of the masked tokens of the current block. On a terminal the canvas is drawn after each
forward; at the end every token is shown with the number and the colour of the forward that committed it. `html=FILE`
writes the same as a page to play forward by forward, with the pictures in it.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from dlm.config.arguments import literal, texts
from dlm.config.build import make, requested_decoding
from dlm.config.command_line import hydra_command
from dlm.config.exported import ExportedFolder
from dlm.config.finished import FinishedRun, found
from dlm.config.kinds import require_options
from dlm.config.settings import Generate
from dlm.data.picture_files import read_pictures
from dlm.decoding.fixed import Fixed
from dlm.errors import one_line
from dlm.model.packed_linears import PackedLinears
from dlm.runs.storage import write_atomically
from dlm.watch.page import page, require_writable
from dlm.watch.picture import embedded_picture
from dlm.watch.pieces import printable
from dlm.watch.speaker import Speaker, trace
from dlm.watch.terminal import INDENT, live_answer, show
from dlm.watch.trace import Race, Recorder


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
    if cfg.html is not None:
        require_writable(Path(cfg.html), "html")


def speakers(cfg: DictConfig, model: FinishedRun | ExportedFolder) -> list[Speaker]:
    """The dLM of a run or an exported folder and, with `parent=true`, the parent of a run."""
    converted, decoder = model.converted, make(decoding_of(cfg, model))
    models = [Speaker("dLM", model.dlm, converted.tokenizer, decoder, converted.processor)]
    if cfg.parent and isinstance(model, FinishedRun):
        parent = model.parent
        models.append(Speaker("parent (AR)", model.ar, parent.tokenizer, Fixed(1), parent.processor))
    return models


def decoding_of(cfg: DictConfig, model: FinishedRun | ExportedFolder) -> dict[str, Any]:
    """The config of the dLM's decoder: the requested one, or its own."""
    return requested_decoding(cfg, OmegaConf.create(model.decoding)) or model.decoding


def settings(cfg: DictConfig, model: FinishedRun | ExportedFolder, dlm: Speaker) -> dict[str, Any]:
    """How the answers were made, by name, for the page."""
    decoding, pattern = decoding_of(cfg, model), dlm.denoiser.pattern
    return {
        "run": model.name,
        "attention": type(pattern).__name__,
        "block_size": pattern.block_size,
        "token_shift": dlm.denoiser.token_shift,
        "decoding": decoding.pop("_target_").split(".")[-2],
        **decoding,
        "max_new_tokens": cfg.max_new_tokens,
        "stop": texts(cfg.stop),
        "seed": cfg.seed,
    }


def write_page(path: Path, text: str) -> None:
    """Write the page, all of it or nothing. Raises `ValueError` if it cannot be written."""
    try:
        write_atomically(path, text)
    except OSError as error:
        raise ValueError(f"html {str(path)!r} cannot be written ({one_line(error)}): name another file") from error


@hydra_command("generate", read=literal)
def main(cfg: DictConfig) -> None:
    check(cfg)
    model = found(cfg.run, cfg.runs_dir, cfg.device)
    prompts = [standard_input()] if cfg.prompt == "-" else texts(cfg.prompt)
    paths = [path for path in texts(cfg.image) if path]
    shown = read_pictures(paths)
    models = speakers(cfg, model)
    encoded = [[speaker.encode_with(prompt, shown, cfg.max_new_tokens) for speaker in models] for prompt in prompts]
    console = Console(force_terminal=True if cfg.live is True else None)
    delay = cfg.delay if cfg.live is True or (cfg.live == "auto" and console.is_terminal) else None
    options = {"max_new_tokens": cfg.max_new_tokens, "stops": texts(cfg.stop), "seed": cfg.seed}
    console.print(Text("run".ljust(INDENT)).append(model.name, "dim"))
    names = [Path(path).name for path in paths]
    if shown:
        console.print(Text("image".ljust(INDENT)).append(printable(", ".join(names)), "dim"), soft_wrap=True)
    in_page = [embedded_picture(*named) for named in zip(names, shown, strict=True)] if cfg.html else []
    races: list[Race] = []
    with ExitStack() as linears:
        for speaker in models:
            linears.enter_context(PackedLinears(speaker.denoiser.model))
        for prompt, of_models in zip(prompts, encoded, strict=True):
            console.print(Text("\nprompt".ljust(INDENT + 1)).append(printable(prompt), "dim"), soft_wrap=True)
            traces = []
            for speaker, (ids, images) in zip(models, of_models, strict=True):
                recorder = Recorder(speaker.tokenizer)
                seen = recorder.see if cfg.html else None
                answer = live_answer(speaker, ids, images, options, console, delay, seen)
                show(speaker, answer, console)
                if cfg.html:
                    traces.append(trace(speaker, ids, recorder.steps, answer))
            races.append(Race(prompt, settings(cfg, model, models[0]), traces, in_page))
    if cfg.html:
        write_page(Path(cfg.html), page(races))
        console.print(f"\n{cfg.html} has the page: open it in a browser", soft_wrap=True)


if __name__ == "__main__":
    main()
