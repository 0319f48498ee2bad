"""The worker that measures dllm (https://github.com/ZHZisZZ/dllm) for `dlm.bench.peer`. The Python of dllm's
environment runs this file, which imports nothing of this repository. A line of JSON on stdin is a request, a line on
stdout its answer. On an error the process ends, with the reason on stderr.

A training step is `BD3LMTrainer.compute_loss` with the default SDPA attention, and backward; decoding is
`BD3LMSampler.sample`, greedy. Both are dllm's own code from end to end; only their inputs are ours:

- its two draws of `torch.rand`, the noise level and the masked positions, give our masked positions;
- `_compute_loss_weights`, its own hook, returns our weights: it has one noise level per row, we one per block;
- a hook on the head sets the mask token's logit to -inf, one column in place: we never predict it;
- no token of the vocabulary is its padding or EOS, because our benchmarks ignore both.

Two of its definitions differ from ours but agree in this benchmark: it divides by the number of labels (here all
tokens), and counts blocks from the left-padded start of a prompt (here whole blocks).
"""

# ruff: noqa: E402 - stdout is for answers alone, before any library is imported that prints

from __future__ import annotations

import os
import sys

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import json
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import dllm  # noqa: F401 - first: it registers the models, and where it is missing nobody waits for torch

# isort: split
import torch
import transformers
from dllm.core.samplers import BD3LMSampler, BD3LMSamplerConfig
from dllm.core.trainers import BD3LMConfig, BD3LMTrainer
from safetensors.torch import load_file, save_file

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PREFIX = "a2d-"  # of dllm's model types, which take any mask


class Trainer(BD3LMTrainer):
    """A trainer whose loss weights are those of the batch."""

    def _compute_loss_weights(self, t, inputs, *args, **kwargs):
        return inputs["weight"]


class Worker:
    """One model, and one batch to train on or to decode after. Every public method is a request."""

    def load(self, folder: str, mask_id: int, device: str, threads: int, clock: str) -> dict[str, Any]:
        """A checkpoint folder's model, in the precision of its weights."""
        torch.set_num_threads(threads)
        check_type(folder)
        self.device, self.mask_id, self.clock = torch.device(device), mask_id, CLOCKS[clock]
        model = transformers.AutoModelForMaskedLM.from_pretrained(folder, dtype="auto")
        self.model = model.to(self.device)
        self.rows, self.forwards = {"network": 0, "head": 0}, 0
        model.get_input_embeddings().register_forward_hook(self.entered)
        model.get_output_embeddings().register_forward_hook(self.scored)
        self.names = SimpleNamespace(
            mask_token_id=mask_id, pad_token_id=-1, eos_token_id=None, bos_token_id=None, padding_side="right"
        )
        return {"attention": model.config._attn_implementation}

    def entered(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self.rows["network"] += args[0].numel()
        self.forwards += 1

    def scored(self, module: Any, args: Any, output: torch.Tensor) -> None:
        """`data`: the gradient of this column is 0 by itself, because exp(-inf) is."""
        self.rows["head"] += output.shape[:-1].numel()
        output.data[..., self.mask_id] = -torch.inf

    def train_on(self, batch: str, block_size: int, scratch: str) -> dict[str, Any]:
        """`batch`: ids [B L], masked [B L], weight [B L]."""
        tensors = {name: tensor.to(self.device) for name, tensor in load_file(batch).items()}
        self.inputs = {"input_ids": tensors["ids"], "labels": tensors["ids"], "weight": tensors["weight"]}
        # dllm masks a position if its draw is below the masking probability: 0 always is, 1 never.
        self.draws = [torch.full((len(tensors["ids"]),), 0.5, device=self.device), (~tensors["masked"]).float()]
        args = BD3LMConfig(
            output_dir=scratch,
            block_size=block_size,
            bf16=False,  # no autocast: the precision is that of the weights
            use_cpu=self.device.type == "cpu",
            report_to="none",
            eval_strategy="no",
        )
        self.trainer = Trainer(args=args, model=self.model, processing_class=self.names)
        self.model.train()
        return {}

    def loss(self) -> torch.Tensor:
        with mock.patch("torch.rand", side_effect=self.draws):
            return self.trainer.compute_loss(self.model, dict(self.inputs))

    def step(self) -> dict[str, Any]:
        """The seconds of one step."""
        self.model.zero_grad(set_to_none=True)
        begin = self.now()
        self.loss().backward()
        return {"seconds": self.now() - begin}

    def gradients(self, to: str) -> dict[str, Any]:
        """Write the loss and the gradient of every parameter to a file."""
        self.model.zero_grad(set_to_none=True)
        self.rows.update(network=0, head=0)
        loss = self.loss()
        loss.backward()
        gradients = {name: p.grad.cpu() for name, p in self.model.named_parameters() if p.grad is not None}
        save_file({"loss": loss.detach().cpu()} | gradients, to)
        self.model.zero_grad(set_to_none=True)
        return {"rows": self.rows}

    def peak(self) -> dict[str, Any]:
        """The peak memory of one step in bytes, weights included: on the device, or of this process (Linux)."""
        self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.loss().backward()
            return {"bytes": torch.cuda.max_memory_allocated()}
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        self.loss().backward()
        with open("/proc/self/status") as file:
            return {"bytes": next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))}

    def decode_after(self, batch: str, new_tokens: int, block_size: int, steps_per_block: int) -> dict[str, Any]:
        """`batch`: ids [B P]."""
        self.model.eval()
        self.prompts = list(load_file(batch)["ids"].to(self.device))
        self.sampler = BD3LMSampler(model=self.model, tokenizer=self.names)
        self.settings = BD3LMSamplerConfig(
            max_new_tokens=new_tokens, block_size=block_size, steps_per_block=steps_per_block, temperature=0.0
        )
        return {}

    def decode(self, to: str | None = None) -> dict[str, Any]:
        """The seconds and the forwards of decoding all; the tokens [B T] go into the file `to`, if any."""
        self.forwards = 0
        begin = self.now()
        sequences = self.sampler.sample(self.prompts, self.settings)
        seconds = self.now() - begin
        if to:
            save_file({"ids": sequences[:, len(self.prompts[0]) :].cpu().contiguous()}, to)
        return {"seconds": seconds, "forwards": self.forwards}

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock()


def check_type(folder: str) -> None:
    """`ValueError` if dllm has no model of the checkpoint's type."""
    with open(os.path.join(folder, "config.json")) as file:
        name = json.load(file)["model_type"]
    model_types = [n for n in transformers.CONFIG_MAPPING if n.startswith(PREFIX)]
    if name not in model_types:
        raise ValueError(f"dllm has no model type {name}: choose a model of {', '.join(model_types)}")


def main() -> None:
    worker = Worker()
    answer: dict[str, Any] = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}}
    print(json.dumps(answer), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
