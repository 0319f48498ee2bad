"""dllm, the strongest peer, in an environment of its own: a process that is asked by lines of JSON, and files between.

`dlm/bench/peers/dllm_worker.py` is what runs there, and says how dllm is made to do the same work.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from dlm.runs.storage import write_atomically

DLLM = "dllm"
WORKER = Path(__file__).parent / "peers" / "dllm_worker.py"
INSTALL = (
    "git clone https://github.com/ZHZisZZ/dllm && cd dllm && python -m venv .venv && "
    ".venv/bin/pip install -e . trl==0.23.1 lm_eval"
)


class Worker:
    """A process that answers one line of JSON with another, and dies where it cannot."""

    def __init__(self, command: list[str], env: dict[str, str], errors: Path):
        self.errors = errors
        with errors.open("w") as file:
            self.process = subprocess.Popen(  # noqa: S603 - the interpreter and the file that the user named
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env=env
            )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer; `ValueError` with the last line of its stderr where the process died."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return self.answer(f"at {request['do']!r}")

    def answer(self, when: str) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            said = [text for text in self.errors.read_text(errors="replace").splitlines() if text.strip()]
            why = said[-1].strip() if said else "it said nothing"
            raise ValueError(f"the process of {DLLM} ended {when} with code {code}: {why}")
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):  # what a dead one was asked
            self.process.stdin.close()
        self.process.stdout.close()


class Dllm:
    """A clone of dllm in `folder`, with its packages in `folder/.venv`. A context: its process ends with it.

    `ValueError` where there is no such clone, or its Python cannot import it. Times are those of its own process, by
    the clock of that name.
    """

    def __init__(self, folder: str, clock: str):
        self.folder, self.clock = Path(folder).expanduser().absolute(), clock
        self.python = self.folder / ".venv" / "bin" / "python"
        self.loaded: torch.dtype | None = None
        for path in (self.folder / "dllm" / "__init__.py", self.python):
            if not path.is_file():
                raise ValueError(
                    f"peer.dllm {folder!r} has no {path.relative_to(self.folder)}. To install it: {INSTALL}"
                )

    def __enter__(self) -> Dllm:
        self.scratch = tempfile.TemporaryDirectory(prefix="dlm-peer-")
        self.path = Path(self.scratch.name)
        # The clone need not be installed itself; the hub and a logger's network have no part in this.
        env = os.environ | {"PYTHONPATH": str(self.folder), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
        self.worker = Worker([str(self.python), str(WORKER)], env, self.path / "stderr")
        try:
            self.versions = self.worker.answer("at its start")["versions"]
        except ValueError as error:
            self.__exit__()
            what = f"peer.dllm {str(self.folder)!r} cannot be imported by its own Python ({error})"
            raise ValueError(f"{what}. To install it: {INSTALL}") from None
        return self

    def __exit__(self, *args: Any) -> None:
        self.worker.close()
        self.scratch.cleanup()

    def another(self) -> Dllm:
        """The same, to be a process of its own."""
        return Dllm(str(self.folder), self.clock)

    @property
    def description(self) -> dict[str, Any]:
        """Which dllm it was, for the record."""
        found = {"name": DLLM, "folder": str(self.folder), "commit": commit(self.folder)}
        return found | {"versions": self.versions, "attention": self.attention}

    def load(self, model: PreTrainedModel, mask_id: int) -> None:
        """The model as it stands, which no benchmark trains: again only where its precision is another."""
        parameter = next(model.parameters())
        if self.loaded == parameter.dtype:
            return
        folder = self.path / str(parameter.dtype)
        model.save_pretrained(folder)
        write_atomically(folder / "config.json", json.dumps(converted(model.config.to_dict())))
        options = {"threads": torch.get_num_threads(), "device": str(parameter.device), "clock": self.clock}
        self.attention = self.worker.ask(do="load", folder=str(folder), mask_id=mask_id, **options)["attention"]
        self.loaded = parameter.dtype

    def train_on(
        self, ids: Int[Tensor, "B L"], masked: Bool[Tensor, "B L"], weight: Float[Tensor, "B L"], block_size: int
    ) -> None:
        """The batch of the steps to come."""
        batch = self.save(ids=ids, masked=masked, weight=weight)
        self.worker.ask(do="train_on", batch=batch, block_size=block_size, scratch=str(self.path / "trainer"))

    def gradients(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The loss and all gradients of a step, and the rows that it sent through network and head."""
        to = self.path / "gradients.safetensors"
        rows = self.worker.ask(do="gradients", to=str(to))["rows"]
        return load_file(to), rows

    def step(self) -> float:
        """The seconds of a step."""
        return self.worker.ask(do="step")["seconds"]

    def peak(self) -> int:
        """The peak memory of a step in bytes: of the whole process, or on the GPU."""
        return self.worker.ask(do="peak")["bytes"]

    def decode_after(self, prompts: Int[Tensor, "N P"], new_tokens: int, block_size: int, tokens_per_step: int) -> None:
        """The prompts of the decoding to come, in whole blocks, and how: `tokens_per_step` divides `block_size`."""
        steps = block_size // tokens_per_step
        options = {"new_tokens": new_tokens, "block_size": block_size, "steps_per_block": steps}
        self.worker.ask(do="decode_after", batch=self.save(ids=prompts), **options)

    def tokens(self) -> tuple[Int[Tensor, "N T"], int]:
        """What it decodes, and in how many forwards."""
        to = self.path / "tokens.safetensors"
        forwards = self.worker.ask(do="decode", to=str(to))["forwards"]
        return load_file(to)["ids"], forwards

    def decode(self) -> float:
        """The seconds of decoding all."""
        return self.worker.ask(do="decode")["seconds"]

    def save(self, **tensors: Tensor) -> str:
        path = self.path / "batch.safetensors"
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, path)
        return str(path)


def commit(folder: Path) -> str | None:
    """The commit of a clone; None where git knows of none."""
    with contextlib.suppress(OSError):
        command = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        return done.stdout.strip() or None


def converted(config: dict[str, Any]) -> dict[str, Any]:
    """A config of transformers 5 as dllm's conversion makes it, in the spelling of transformers 4."""
    rope = dict(config.pop("rope_parameters", None) or {})
    config |= {"model_type": f"a2d-{config['model_type']}", "architectures": None}
    config["rope_theta"] = rope.pop("rope_theta", None)
    return config | {"rope_scaling": None if rope.get("rope_type", "default") == "default" else rope}
