"""dllm, the strongest peer, in its own environment: a process that answers requests in lines of JSON, with tensors in
files.

That process runs `dlm/bench/peers/dllm_worker.py`, which explains how dllm is made to do the same work.
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
    """A process that answers a line of JSON with another one. On an error it ends."""

    def __init__(self, command: list[str], env: dict[str, str], errors: Path):
        self.errors = errors
        with errors.open("w") as file:
            self.process = subprocess.Popen(  # noqa: S603 - the interpreter and the file that the user named
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env=env
            )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request; `ValueError` with the last line of its stderr if the process died."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return self.answer(f"at {request['do']!r}")

    def answer(self, when: str) -> dict[str, Any]:
        """The next line of the process; `when` says in the error what it was doing."""
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            lines = [line for line in self.errors.read_text(errors="replace").splitlines() if line.strip()]
            why = lines[-1].strip() if lines else "it said nothing"
            raise ValueError(f"the process of {DLLM} ended {when} with code {code}: {why}")
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):  # an unread request of a dead process
            self.process.stdin.close()
        self.process.stdout.close()


class Dllm:
    """A clone of dllm in `folder`, with its packages in `folder/.venv`. It is a context manager: its process ends with
    the context.

    `ValueError` if there is no such clone, or its Python cannot import it. `clock` names the clock by which its own
    process measures seconds.
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
        # PYTHONPATH: the clone itself need not be installed. The others keep it off the network.
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
        """The same clone, for a second process."""
        return Dllm(str(self.folder), self.clock)

    @property
    def description(self) -> dict[str, Any]:
        """The clone and its versions, for the record."""
        clone = {"name": DLLM, "folder": str(self.folder), "commit": commit(self.folder)}
        return clone | {"versions": self.versions, "attention": self.attention}

    def load(self, model: PreTrainedModel, mask_id: int) -> None:
        """Send the model. It is sent again only in another precision: no benchmark trains it."""
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
        """Send the batch of the following steps."""
        batch = self.save(ids=ids, masked=masked, weight=weight)
        self.worker.ask(do="train_on", batch=batch, block_size=block_size, scratch=str(self.path / "trainer"))

    def gradients(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The loss and all gradients of a step, and the number of rows that its `network` and `head` computed."""
        to = self.path / "gradients.safetensors"
        rows = self.worker.ask(do="gradients", to=str(to))["rows"]
        return load_file(to), rows

    def step(self) -> float:
        """The seconds of a step."""
        return self.worker.ask(do="step")["seconds"]

    def peak(self) -> int:
        """The peak memory of a step in bytes: of the whole process on a CPU, allocated on a GPU."""
        return self.worker.ask(do="peak")["bytes"]

    def decode_after(self, prompts: Int[Tensor, "B P"], new_tokens: int, block_size: int, tokens_per_step: int) -> None:
        """Send the prompts (whole blocks) and the settings of the following decoding. `tokens_per_step` divides
        `block_size`."""
        steps = block_size // tokens_per_step
        options = {"new_tokens": new_tokens, "block_size": block_size, "steps_per_block": steps}
        self.worker.ask(do="decode_after", batch=self.save(ids=prompts), **options)

    def tokens(self) -> tuple[Int[Tensor, "B T"], int]:
        """The generated tokens, and the number of forwards."""
        to = self.path / "tokens.safetensors"
        forwards = self.worker.ask(do="decode", to=str(to))["forwards"]
        return load_file(to)["ids"], forwards

    def decode(self) -> float:
        """The seconds of decoding after all prompts."""
        return self.worker.ask(do="decode")["seconds"]

    def save(self, **tensors: Tensor) -> str:
        """Write the tensors of a request to a file, and return its path."""
        path = self.path / "batch.safetensors"
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, path)
        return str(path)


def commit(folder: Path) -> str | None:
    """The commit of a clone; None if git knows none."""
    with contextlib.suppress(OSError):
        command = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
        completed = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        return completed.stdout.strip() or None


def converted(config: dict[str, Any]) -> dict[str, Any]:
    """A config of transformers 5 as dllm's conversion would write it, with the keys of transformers 4."""
    rope = dict(config.pop("rope_parameters", None) or {})
    config |= {"model_type": f"a2d-{config['model_type']}", "architectures": None}
    config["rope_theta"] = rope.pop("rope_theta", None)
    return config | {"rope_scaling": None if rope.get("rope_type", "default") == "default" else rope}
