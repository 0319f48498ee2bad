"""Give a language model a vision tower, as a LLaVA checkpoint: `python -m dlm.compose tower=siglip to=FOLDER`.

What it says of a text is its parent's, to the bit. Training with the AR loss then teaches it to see.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dlm.config.build import make
from dlm.config.command_line import hydra_command
from dlm.config.kinds import require_options
from dlm.config.settings import Compose
from dlm.errors import one_line
from dlm.model.compose import Tower, compose, new_tower, pretrained_tower
from dlm.model.parent import resolve

NEW = "siglip"


def tower_of(cfg: DictConfig) -> Tower:
    """The tower that a config asks for."""
    if cfg.tower == NEW:
        return new_tower(OmegaConf.to_container(cfg.size), cfg.image_mean, cfg.image_std, cfg.seed)
    return pretrained_tower(resolve(cfg.tower))


@hydra_command("compose")
def main(cfg: DictConfig) -> None:
    require_options(cfg, "compose", Compose)
    target = Path(cfg.to).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"to {cfg.to!r} exists and is not an empty folder: name a new one, nothing is overwritten")
    parent = make(cfg.model)
    model, processor = compose(parent.model, parent.tokenizer, tower_of(cfg), cfg.seed)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        target.rmdir() if target.exists() else None
        temporary.replace(target)
    except OSError as error:
        raise ValueError(f"to {cfg.to!r} cannot be written ({one_line(error)}): name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.model.named_children()}
    print(f"{cfg.to}: " + ", ".join(f"{name} of {size:,} parameters" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
