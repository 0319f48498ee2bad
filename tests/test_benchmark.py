"""`python -m dlm.benchmark`: the arithmetic is that of the hand, records are whole. No test looks at a clock."""

import json
import weakref
from itertools import count

import pytest
import torch
from common import MASK_ID, config, one_in, options, tiny
from rich.console import Console
from workbenches import FAST, SMALL, losses_of, workbench

from dlm import benchmark as command_module
from dlm.bench import decode, engines, naive, train
from dlm.bench.base import cast, use
from dlm.bench.gate import TOLERANCE
from dlm.benchmark import benchmark
from dlm.config.build import ar_denoiser, make
from dlm.decoding.engine.request import Request
from dlm.evaluation.timing import Arm, interleaved, ratio, spread
from dlm.model import packed_linears

# --- times


def test_arms_take_turns_and_warm_up_is_not_kept():
    now, order = [0.0], []

    def arm(name, seconds):
        def run():
            order.append(name)
            now[0] += next(seconds)

        def setup():
            now[0] += 100  # not part of the time

        return Arm(run, setup)

    arms = {"a": arm("a", iter([9, 1, 2, 6])), "b": arm("b", iter([9, 2, 8, 3]))}
    times = interleaved(arms, repeats=3, warmup=1, clock=lambda: now[0])
    assert order == ["a", "b"] * 4
    assert times == {"a": [1, 2, 6], "b": [2, 8, 3]}
    assert spread(times["a"]) == {"median": 2, "min": 1, "max": 6}
    assert ratio(times["b"], times["a"]) == {"median": 2, "min": 0.5, "max": 4}  # of the rounds: 2, 4, 1/2


# --- the command


@pytest.mark.trains
@pytest.mark.parametrize("option", options("bench"))
def test_every_benchmark_yaml_composes_and_runs(option, benchmark_command, tmp_path):
    code, out, err = benchmark_command(
        f"bench={option}", *SMALL.get(option, []), "peak_tflops=1", "peak_bandwidth_gbs=10"
    )
    assert code == 0, err
    assert "…" not in out and all(len(line) <= 100 or line.startswith("record") for line in out.splitlines())
    (path,) = (tmp_path / "benchmarks").iterdir()  # and no temporary file beside it
    record = json.loads(path.read_text())
    assert path.name.startswith(f"{option}-") and f"record: {path}" in out
    assert {"date", "versions", "commit", "machine", "device", "model", "settings", "result"} <= record.keys()
    assert record["bench"] == record["choices"]["bench"] == option
    assert record["settings"]["repeats"] == 2 and record["model"]["source"] == "random qwen3"


@pytest.mark.trains
def test_the_record_of_a_training_step_holds_every_repetition(benchmark_command, tmp_path):
    out = tmp_path / "deep" / "record.json"
    code, printed, err = benchmark_command(
        *SMALL["train"], f"out={out}", "peak_tflops=1", "token_shift=true", "repeats=3"
    )
    assert code == 0, err
    result = json.loads(out.read_text())["result"]
    arms = {train.OURS, train.NAIVE, train.AR, train.AGAIN}
    assert set(result["seconds"]) == arms | {"prepare"}
    assert all(len(values) == 3 and min(values) > 0 for values in result["seconds"].values())
    assert result["gate"]["max_relative_error"] <= result["gate"]["tolerance"] == 1e-4
    for key in ("time_over_ours", "time_over_ar", "tokens_per_second"):
        assert set(result[key]) == arms
    assert result["time_over_ours"][train.OURS] == {"median": 1, "min": 1, "max": 1}
    assert set(result["counts"]) == set(result["useful_mfu"]) == arms - {train.AGAIN}
    assert "useful MFU" in printed and "peak GB" not in printed  # nor was it measured


def test_a_record_is_not_written_where_the_gate_fails(benchmark_command, tmp_path, monkeypatch):
    right = naive.diffusion_loss
    monkeypatch.setattr(naive, "diffusion_loss", lambda *args: right(*args) * 1.5)
    code, _, err = benchmark_command(*SMALL["train"])
    assert code == 1 and err.startswith("error: gate failed: the loss differs") and err.count("\n") == 1
    assert list((tmp_path / "benchmarks").iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    one_in(
        3,
        [
            (["repeats=0"], "repeats 0 must be at least 1"),
            (["warmup=-1"], "warmup -1 must be at least 0"),
            (["bench.block_size=7"], "block_size 7 must divide length 256: choose one of 1, 2, 4"),
            (["bench.block_size=0"], "block_size 0 must be at least 1"),
            (["bench.length=1"], "length 1 must be at least 2"),
            (["bench=decode", "bench.block_sizes=[8,5]"], "block_size 5 must divide prompt_length 64"),
            (["bench=decode", "bench.tokens_per_step=[16]"], "tokens_per_step 16 exceeds block_size 8"),
            (["bench=decode", "bench.batch_sizes=[]"], "batch_sizes is empty"),
            (["bench=sweep", "bench.lengths=[]"], "lengths is empty"),
            (["device=tpu"], "device 'tpu' is not on this machine: choose one of auto, cpu"),
            (["dtype=int8"], "dtype 'int8' is unknown: choose one of float32"),
            (["clock=sun"], "clock 'sun' is unknown: choose one of wall, cpu"),
            (["threads=0"], "threads 0 must be more than 0"),
            (["peak_tflops=-1"], "peak_tflops -1 must be more than 0"),
            (["masking.t_max=2"], "masking.t_max 2 must satisfy"),
            (["out=/proc/none/record.json"], "out '/proc/none/record.json' cannot be written"),
            (["out=/tmp"], "out '/tmp' is a folder"),
        ],
    ),
)
def test_bad_input_is_one_line_before_the_model_is_loaded(benchmark_command, monkeypatch, overrides, message):
    monkeypatch.setattr(command_module, "make_workbench", lambda *args: pytest.fail("loaded"))
    code, _, err = benchmark_command(*overrides)
    assert code == 1 and message in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["bench.length=2048"], "length 2048 exceeds the model's 1024 positions: choose at most 1024"),
        (["bench=decode", "bench.prompt_length=1024"], "prompt_length + new_tokens 1056 exceeds"),
    ],
)
def test_a_row_longer_than_the_models_positions_is_refused(benchmark_command, overrides, message):
    code, _, err = benchmark_command(*overrides)
    assert code == 1 and message in err


@pytest.mark.trains
def test_the_help_explains_the_benchmarks(benchmark_command):
    code, out, _ = benchmark_command("--help")
    assert not code
    for text in (*(f"bench={name}" for name in options("bench")), "peak_tflops", "bench.batch_sizes=[1,8]", "repeats"):
        assert text in out


# --- the workbench


@pytest.mark.trains
def test_bfloat16_is_gated_in_float32_and_timed_as_it_is(tmp_path, monkeypatch):
    cfg = config("bench=decode", *SMALL["decode"], *FAST, "dtype=bfloat16", f"out={tmp_path}/r.json", name="benchmark")
    seen, point = [], decode.Decode.point

    def watched(self, bench, *args):
        seen.append(next(bench.model.parameters()).dtype)
        with bench.gate():
            seen.append(next(bench.model.parameters()).dtype)
        seen.append(next(bench.model.parameters()).dtype)
        return point(self, bench, *args)

    monkeypatch.setattr(decode.Decode, "point", watched)
    benchmark(cfg, Console(width=100))
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert json.loads((tmp_path / "r.json").read_text())["model"]["dtype"] == "bfloat16"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("compiles", [False, True])
def test_our_engines_alone_decode_from_packed_weights_and_not_what_is_compiled(monkeypatch, compiles):
    calls, kernel = [], torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *args: calls.append(1) or kernel(*args))
    monkeypatch.setattr(packed_linears, "MIN_ELEMENTS", 0)
    bench = workbench(tiny("llama", torch.float32))
    bench.compile = compiles
    monkeypatch.setattr(engines, "Request", lambda *args, **options: Request(*args, **options | {"compile": False}))
    with torch.no_grad(), decode.ignoring_eos(bench.model):
        for name, engine in engines.engines(bench, bench.ids(1, 8), 4, 2, 8).items():
            calls.clear()
            decode.run(bench, name, engine)
            assert bool(calls) == (not compiles and name in (decode.OURS, decode.AGAIN, decode.OURS_AR)), name


def test_forwards_are_those_of_the_generations_whether_or_not_a_hook_is_called(llama, monkeypatch):
    """A replayed graph calls none, and one that is being traced calls it once."""
    monkeypatch.setattr(llama.get_decoder(), "register_forward_pre_hook", lambda *args: pytest.fail("a hook"))
    bench = workbench(llama)
    ways = engines.engines(bench, bench.ids(2, 8), 4, 2, 8)
    with torch.no_grad():
        assert ways[decode.OURS]().forwards == 4 and ways[decode.OURS_AR]().forwards == 8


@pytest.mark.parametrize(("forwards", "seconds"), [(20, 0.5), (9, 0.5), (8, (3.0 + 8 * 0.5) / 8), (1, 3.5)])
def test_the_time_of_a_forward_is_without_the_set_up_of_a_call_where_there_are_enough(forwards, seconds):
    now = [0.0]
    watch = engines.Stopwatch(lambda: now[0])
    now[0] += 3.0  # prefill, warm-ups, capture
    for _ in range(forwards):
        now[0] += 0.5
        watch.count()
    assert watch.seconds() == pytest.approx(seconds)


@pytest.mark.trains
def test_the_packed_weights_of_the_gate_are_gone_when_times_are_taken(monkeypatch):
    """Else those of a large model do not fit twice, and it is timed without them."""
    alive = weakref.WeakSet()

    class Counted(packed_linears.PackedLinears):
        def __init__(self, model):
            super().__init__(model)
            alive.add(self)

    def count_then_time(*args):
        counts.append(len(alive))
        return interleaved(*args)

    counts = []
    monkeypatch.setattr(engines, "PackedLinears", Counted)
    monkeypatch.setattr(decode, "interleaved", count_then_time)
    decode.Decode(8, 8, [1], [4], [2, 4]).run(workbench(tiny("llama", torch.float32), clock=count().__next__))
    assert counts == [1, 1]  # of either combination, its own


def test_casting_leaves_the_rotary_frequencies_alone():
    model = tiny("llama", torch.float32)
    before = model.model.rotary_emb.inv_freq.clone()
    cast(model, torch.device("cpu"), torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.model.rotary_emb.inv_freq, before)


def test_the_attention_of_an_arm_is_its_own_and_changes_nothing():
    model = tiny("llama")
    bench, _, _, losses = losses_of(model)
    bench.attention = "eager"
    assert train.gate(bench, losses) <= TOLERANCE[torch.float64]  # ours with eager attention, naive with SDPA
    train.set_up(bench, train.OURS)
    assert model.config._attn_implementation == "eager"
    use(model, bench.plain_attention)
    assert model.config._attn_implementation == "sdpa"


def test_random_tokens_never_hold_the_mask(llama):
    ids = workbench(llama).ids(50, 40)
    assert MASK_ID not in ids and ids.min() >= 0 and len(ids.unique()) == 60
    assert torch.equal(ids, workbench(llama).ids(50, 40))


def test_a_random_parent_has_the_vocabulary_that_it_is_given():
    node = config("model=random_small").model
    node.config.num_hidden_layers = 1
    parent = make(node)
    assert parent.model.get_input_embeddings().weight.shape == (8192, 256)
    assert parent.mask_id < 8192 and ar_denoiser(parent).mask_id == parent.mask_id
    node.config.vocab_size = 10
    with pytest.raises(ValueError, match="vocab_size 10 must be at least the tokenizer's"):
        make(node)
    node.dtype = "int8"
    with pytest.raises(ValueError, match="'int8' is unknown"):
        make(node)
