"""Decoding at a forced number of tokens per step, so that every engine does the same denoising steps.

EOS is ignored, so lengths are fixed. Speeds include the prompt's forward. On a CPU our engines decode from packed
weights, as `python -m dlm.generate` does; packing is not part of the time. Ours and the naive loop decode the converted
checkpoint; ours (AR) and Hugging Face `generate` its parent, which is the same weights here. A peer, where there is
one, decodes the converted checkpoint in a process of its own.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from rich.table import Table
from transformers import PreTrainedModel

from dlm.bench.base import Bench, Workbench, require_at_least, require_divides, require_some
from dlm.bench.engines import AGAIN, HF, NAIVE, OURS, OURS_AR, Engine, engines, ignoring_eos, ready, run
from dlm.bench.gate import require_same_tokens
from dlm.bench.peer import DLLM
from dlm.evaluation.timing import Arm, Elsewhere, interleaved, ratio, spread, with_range

GATE_BATCH = 2  # sequences of the gate at most: of very many decisions, rounding turns one


class Decode(Bench):
    """Every combination of `batch_sizes`, `block_sizes` and `tokens_per_step`: `new_tokens` after random prompts of
    `prompt_length` tokens. The time of a forward is without the set-up of a call: on a GPU, the capture of its
    graphs."""

    def __init__(
        self,
        prompt_length: int,
        new_tokens: int,
        batch_sizes: list[int],
        block_sizes: list[int],
        tokens_per_step: list[int],
    ):
        require_at_least(1, prompt_length=prompt_length, new_tokens=new_tokens)
        require_some(batch_sizes=batch_sizes, block_sizes=block_sizes, tokens_per_step=tokens_per_step)
        for batch_size in batch_sizes:
            require_at_least(1, batch_sizes=batch_size)
        for block_size in block_sizes:
            require_divides(block_size, prompt_length=prompt_length, new_tokens=new_tokens)
        for k in tokens_per_step:
            require_at_least(1, tokens_per_step=k)
            if k > min(block_sizes):
                raise ValueError(f"tokens_per_step {k} exceeds block_size {min(block_sizes)}: choose at most that many")
        self.prompt_length, self.new_tokens = prompt_length, new_tokens
        self.points = list(itertools.product(batch_sizes, block_sizes, tokens_per_step))

    def run(self, bench: Workbench) -> dict[str, Any]:
        bench.check_positions(self.prompt_length + self.new_tokens, "prompt_length + new_tokens")
        if bench.peer:
            self.check_steps()
        bench.model.eval()
        with ignoring_eos(bench.model):
            return {
                "settings": {"prompt_length": self.prompt_length, "new_tokens": self.new_tokens},
                "points": [self.point(bench, *point) for point in self.points],
            }

    def check_steps(self) -> None:
        """A peer is told how many steps a block takes, not how many tokens a step commits."""
        for _, block_size, k in self.points:
            if block_size % k:
                fitting = ", ".join(str(n) for n in range(1, block_size + 1) if block_size % n == 0)
                raise ValueError(
                    f"tokens_per_step {k} must divide block_size {block_size} beside peer.dllm: choose one of {fitting}"
                )

    def point(self, bench: Workbench, batch_size: int, block_size: int, k: int) -> dict[str, Any]:
        """The gate and the times of one combination."""
        peer_forwards = self.agree(bench, batch_size, block_size, k)
        # Made again: the weights may be of another type now. The gate's own are gone, whose packed weights took memory.
        prompts = bench.ids(batch_size, self.prompt_length)
        ways = engines(bench, prompts, block_size, k, self.new_tokens)
        forwards = {name: run(bench, name, engine).forwards for name, engine in ways.items()}
        arms, per_forward = arms_of(bench, ways)
        if bench.peer:
            self.give(bench, batch_size, block_size, k)
            forwards[DLLM], arms[DLLM] = peer_forwards, Elsewhere(bench.peer.decode)
        times = interleaved(arms, bench.repeats, bench.warmup, bench.clock)
        point = {"batch_size": batch_size, "block_size": block_size, "tokens_per_step": k, "seconds": times}
        seconds = {name: statistics.median(rounds[bench.warmup :]) for name, rounds in per_forward.items()}
        seconds |= {name: spread(times[name])["median"] / forwards[name] for name in arms.keys() - seconds.keys()}
        return point | {"arms": {n: self.summary(bench, n, point, forwards[n], seconds[n]) for n in arms}}

    def agree(self, bench: Workbench, batch_size: int, block_size: int, k: int) -> int | None:
        """The gate: `GateError` unless the same tokens come out. The peer's forwards, where there is one."""
        batch_size = min(batch_size, GATE_BATCH)
        with bench.gate():
            ways = engines(bench, bench.ids(batch_size, self.prompt_length), block_size, k, self.new_tokens)
            tokens = {name: run(bench, name, engine).tokens for name, engine in ways.items() if name != AGAIN}
            require_same_tokens("ours and the naive loop", tokens[OURS], tokens[NAIVE])
            require_same_tokens("ours (AR) and Hugging Face generate", tokens[OURS_AR], tokens[HF])
            if not bench.peer:
                return None
            self.give(bench, batch_size, block_size, k)
            theirs, forwards = bench.peer.tokens()
            require_same_tokens(f"ours and {DLLM}", tokens[OURS], theirs)
            return forwards

    def give(self, bench: Workbench, batch_size: int, block_size: int, k: int) -> None:
        """The model as it stands and the prompts, to the peer."""
        bench.peer.load(bench.model, bench.parent.mask_id)
        bench.peer.decode_after(bench.ids(batch_size, self.prompt_length), self.new_tokens, block_size, k)

    def summary(
        self, bench: Workbench, name: str, point: dict[str, Any], forwards: int, per_forward: float
    ) -> dict[str, Any]:
        """What an arm's times mean. Rates are of the whole batch; `tokens_per_forward` is of one sequence;
        `per_forward` are the seconds of a forward."""
        seconds, batch_size = point["seconds"], point["batch_size"]
        took = spread(seconds[name])["median"]
        step = 1 if name in (OURS_AR, HF) else point["block_size"]
        # The columns of a forward: what is before the block, and the block; the mean over the blocks.
        context = self.prompt_length + (self.new_tokens - step) / 2 + step
        weights, cache = weight_bytes(bench.model), batch_size * context * cache_bytes_per_token(bench.model)
        # A peer reads more than a forward of ours needs.
        limit = bench.peak_bandwidth_gbs and name != DLLM and (weights + cache) / (bench.peak_bandwidth_gbs * 1e9)
        return {
            "forwards": forwards,
            "tokens_per_forward": self.new_tokens / forwards,
            "ms_per_forward": per_forward * 1e3,
            "tokens_per_second": batch_size * self.new_tokens / took,
            "speed_over_hf": ratio(seconds[HF], seconds[name]),
            "speed_over_naive": ratio(seconds[NAIVE], seconds[name]),
            "speed_over_dllm": ratio(seconds[DLLM], seconds[name]) if DLLM in seconds else None,
            "weight_bytes_per_forward": weights,
            "cache_bytes_per_forward": cache,
            "fraction_of_bandwidth": limit / per_forward if limit else None,
        }

    def tables(self, result: dict[str, Any]) -> list[Table]:
        s = result["settings"]
        first = result["points"][0]["arms"]
        limited, peer = first[OURS]["fraction_of_bandwidth"] is not None, DLLM in first
        table = Table(
            title=f"Decoding: {s['new_tokens']} tokens after {s['prompt_length']}; median "
            f"(range) of {len(result['points'][0]['seconds'][OURS])}",
            caption="N batch, B block, k tokens committed in a step. Same tokens: "
            f"ours = naive loop{' = dllm' * peer}, ours (AR) = HF.",
        )
        speed, of = ("speed / dllm", "speed_over_dllm") if peer else ("speed / HF", "speed_over_hf")
        columns = ["N", "B", "k", "arm", "forwards", "tok/fwd", "ms/fwd", "tok/s", speed]
        for column in columns + ["limit"] * limited:
            table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
        for point in result["points"]:
            key = [str(point[name]) for name in ("batch_size", "block_size", "tokens_per_step")]
            for name, a in point["arms"].items():
                cells = [f"{a['forwards']}", f"{a['tokens_per_forward']:.2f}", f"{a['ms_per_forward']:.2f}"]
                cells += [f"{a['tokens_per_second']:,.0f}", with_range(a[of])]
                fraction = a["fraction_of_bandwidth"]
                table.add_row(*key, name, *cells, *["–" if fraction is None else f"{fraction:.1%}"] * limited)
                key = [""] * 3
            table.add_section()
        return [table]


def arms_of(bench: Workbench, ways: dict[str, Engine]) -> tuple[dict[str, Arm], dict[str, list[float]]]:
    """The ways to decode as contestants, each with its own attention, and the lists to which every run of theirs adds
    the seconds of a forward."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}

    def arm(name: str, engine: Engine) -> Arm:
        return Arm(lambda: seconds[name].append(engine().seconds), lambda: ready(bench, name))

    return {name: arm(name, engine) for name, engine in ways.items()}, seconds


def weight_bytes(model: PreTrainedModel) -> int:
    """The bytes of the weights that a forward reads: all, but of an untied input embedding only a few rows."""
    embedding = model.get_input_embeddings().weight
    tied = embedding is model.get_output_embeddings().weight
    return sum(p.nbytes for p in model.parameters()) - (0 if tied else embedding.nbytes)


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """The bytes of one token's keys and values in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_dim * model.get_input_embeddings().weight.dtype.itemsize
