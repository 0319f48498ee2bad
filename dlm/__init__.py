"""Turns pretrained autoregressive language models into diffusion language models. `dlm.load` is the door for a program;
everything else is a command or a module of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlm.config.finished import Loaded


def load(run: str, runs_dir: str = "runs", device: str = "auto") -> Loaded:
    """A finished run, or an exported folder, ready to decode: `denoiser, tokenizer, decoder = dlm.load("runs/5f3a…")`.

    `run` is a run's id, a unique beginning of it, its folder, or a folder that `python -m dlm.export` wrote. Decoding
    is `decoder.generate(denoiser, Request([tokenizer(text)["input_ids"]], max_new_tokens=64, eos_ids=…))`, see
    `dlm.decoding.engine.request`. Of a model that reads images, what is returned also has a `processor`, which makes
    prompts of text and images (docs/how_to/vision.md); of others it is None. Raises `ValueError` if there is no such
    run, it has no model, a file of it is damaged, or this machine has no such device.
    """
    from dlm.config.finished import load  # imports torch, which takes seconds

    return load(run, runs_dir, device)
