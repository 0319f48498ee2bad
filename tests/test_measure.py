"""Measuring a finished run again: once for the same weights and settings, and what each measurement finds, by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from common import EOS_ID, config, denoiser, options
from omegaconf import OmegaConf

from dlm.config.build import make
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold
from dlm.evaluation.likelihood import likelihood, windows
from dlm.masking.position import Position
from dlm.measurement import decode, embedding, position_loss, trace
from dlm.measurement.base import Subject
from dlm.measurement.store import measure
from dlm.runs.run import Run, measurement_file
from dlm.train import train

pytestmark = pytest.mark.trains

LIGHT = ("items_per_family=1", "rows=3", "length=32", "samples=2", "repeats=1", "max_new_tokens=6", "texts=20")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A run of one optimizer step."""
    runs = tmp_path_factory.mktemp("runs")
    small = ("tokens=256", "block_size=4", "data.length=64", "data.batch_size=4", "data.val_rows=4", "evaluation=none")
    result = train(config(*small, "logger=csv", "runtime.progress_bar=false", f"runs_dir={runs}"))
    return Subject(Run.load(result["id"], runs))


def settings(*overrides: str) -> dict:
    return OmegaConf.to_container(config("run=none", *LIGHT, *overrides, name="measure").measurement, resolve=True)


@pytest.mark.parametrize("option", options("measurement"))
def test_every_measurement_finds_what_json_can_hold_and_is_made_once(option, subject, monkeypatch):
    wanted = settings(f"measurement={option}", "decoding=threshold")
    found = measure(subject, wanted)
    path = subject.run.folder / measurement_file(wanted)
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))
    assert found["settings"] == wanted and found["run"] == subject.run.id and found["result"]
    monkeypatch.setattr("dlm.measurement.store.make", None)  # nothing is made, so nothing is measured
    assert measure(subject, wanted) == json.loads(path.read_text())


def test_other_settings_or_other_weights_are_measured_anew(subject):
    wanted = settings("measurement=masked", "measurement.draws=10")
    measure(subject, wanted)
    assert measurement_file(wanted) != measurement_file(wanted | {"draws": 11})
    path = subject.run.folder / measurement_file(wanted)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": "others", "result": "old"}))
    assert measure(subject, wanted)["result"] != "old"


def test_an_unfinished_run_cannot_be_measured(tmp_path):
    run = Run(tmp_path / "abc")
    run.folder.mkdir()
    run.update(status="interrupted")
    with pytest.raises(ValueError, match="run abc is interrupted and has no model"):
        Subject(run)


def test_a_finished_run_can_be_the_parent_of_another(subject, tmp_path):
    runs = subject.run.folder.parent
    parent = make(config("model=run", f"model.run={subject.run.id}", f"model.runs_dir={runs}").model, check=False)
    assert parent.source == f"run {subject.run.id}"
    theirs = subject.converted.model.state_dict()
    assert all(torch.equal(t, theirs[n]) for n, t in parent.model.state_dict().items())
    with pytest.raises(ValueError, match="run 'zzz' does not exist"):
        make(config("model=run", "model.run=zzz", f"model.runs_dir={runs}").model)


def test_decoding_at_another_block_size_and_of_the_parent(subject):
    other = measure(subject, settings("measurement=decode", "measurement.block_size=2", "decoding.threshold=1"))
    assert other["result"]["block_size"] == 2 and other["result"]["n"] == 9
    items = other["result"]["items"]
    assert {len(column) for column in items.values()} == {9} and set(items) >= {"rows", "endless"}
    assert sum(items["tokens"]) / sum(items["rows"]) == pytest.approx(other["result"]["tokens_per_row"])
    assert sum(items["endless"]) / 9 == other["result"]["endless"]
    assert len(other["result"]["items"]["correct"]) == 9 and other["result"]["tokens_per_second"] is None
    ar = measure(subject, settings("measurement=decode", "measurement.model=ar", "measurement.timed_batch_size=4"))
    assert ar["result"]["block_size"] == 1 and ar["result"]["tpf"] == 1.0 and ar["result"]["tokens_per_second"] > 0
    assert subject.dlm.pattern.block_size == 4


@pytest.fixture
def asked(monkeypatch):
    """How many items were decoded and with which threshold, by a decoding that only pretends: the tokens per forward
    are 4 at a threshold of 0 and 2 at one of 1."""
    asked = []

    def pretended(denoiser, tokenizer, examples, decoder, max_new_tokens, batch_size):
        asked.append((len(examples), decoder.threshold))
        tokens = [round(100 * (2 - decoder.threshold))] * len(examples)
        return pd.DataFrame({"family": "add", "correct": True, "tokens": tokens, "nfe": 50, "step": 0})

    monkeypatch.setattr("dlm.evaluation.calibration.run_tasks", pretended)
    monkeypatch.setattr(decode, "run_tasks", pretended)
    return asked


def threshold_of(subject: Subject, *overrides: str) -> float:
    wanted = settings("measurement=decode", "measurement.thresholds=[1.0,0.6,0.4,0.0]", *overrides)
    return make(OmegaConf.create(wanted))(subject)["threshold"]


def test_a_target_of_tokens_per_forward_is_met_by_the_nearest_threshold(subject, asked):
    assert threshold_of(subject, "measurement.tpf=2.7") == 0.6  # 2.8; the others give 2, 3.2 and 4
    assert [n for n, _ in asked] == [90] * 4 + [9]
    with pytest.raises(ValueError, match="measurement.tpf 2 is reached through a threshold"):
        make(OmegaConf.create(settings("measurement=decode", "measurement.tpf=2", "decoding=fixed")))
    with pytest.raises(ValueError, match="measurement.thresholds is empty: name candidates"):
        make(OmegaConf.create(settings("measurement=decode", "measurement.tpf=2", "measurement.thresholds=[]")))
    with pytest.raises(ValueError, match="measurement.model 'them' is unknown"):
        make(OmegaConf.create(settings("measurement=decode", "measurement.model=them")))


def test_targets_of_one_run_are_chosen_from_one_calibration_and_other_decoders_from_their_own(subject, asked):
    subject = Subject(subject.run)
    found = [threshold_of(subject, f"measurement.tpf={target}") for target in (2.1, 3.1, 9)]
    assert found == [1.0, 0.4, 0.0]
    assert [n for n, _ in asked] == [90] * 4 + [9] * 3
    others = ("decoding=sub_block", "measurement.block_size=2", "calibration_per_family=2", "max_new_tokens=5")
    for other in (*others, "measurement.model=ar", "batch_size=3"):
        asked.clear()
        assert threshold_of(subject, "measurement.tpf=2.7", other) == 0.6
        assert len(asked) == 5
    asked.clear()
    assert threshold_of(subject, "measurement.tpf=2.7", "measurement.thresholds=[0.8,0.2]") == 0.8 and len(asked) == 3
    assert threshold_of(subject, "measurement.tpf=9", "decoding.threshold=0.3") == 0.0 and len(asked) == 4
    asked.clear()
    threshold_of(Subject(subject.run), "measurement.tpf=2.7")
    assert len(asked) == 5


def test_states_of_decoding_by_hand():
    """Blocks of two: an answer of three tokens behind a prompt of one, decoded from right to left in its whole block;
    then its last token, EOS, with the position behind it."""
    results = pd.DataFrame({"prompt_tokens": [2], "step": [[2, 1, 3]]})
    table = trace.masked_by_level(results, 2, ends_in_eos=True)
    # One block at (left, right): both masked, then the left one alone. The other: both at once.
    assert table[1] == pytest.approx([(2 + 1) / 3] * 2)  # both masked in all forwards with both masked
    assert table[0] == pytest.approx([(1 + 0.5) / 2, (0 + 0.5) / 2])


def test_a_prompt_inside_a_block_has_no_state():
    results = pd.DataFrame({"prompt_tokens": [3], "step": [[1]]})
    table = trace.masked_by_level(results, 4, ends_in_eos=True)
    assert table[3] == pytest.approx([1, 1, 1, 1])
    assert table[:3] == pytest.approx(np.repeat([[0.25], [0.5], [0.75]], 4, 1))  # never met: uniform


def test_the_order_of_commitment_is_told_by_blocks_of_nothing_but_answer():
    """Blocks of three behind a prompt of one: the first is cut by the prompt, the second is full, the third holds EOS;
    without EOS the third counts. Its steps fall with the position."""
    steps = [9, 9, 4, 6, 5, 3, 2, 1]
    results = pd.DataFrame({"prompt_tokens": [1, 1], "step": [steps, steps], "endless": [False, True]})
    of_both = trace.order_in_full_blocks(results, 3)
    assert [p["step"] for p in of_both["positions"]] == pytest.approx([2 / 3, 5 / 3, 2 / 3]) and of_both["blocks"] == 3
    ended = trace.order_in_full_blocks(results.head(1), 3)
    assert [(p["step"], p["n"]) for p in ended["positions"]] == [(0, 1), (2, 1), (1, 1)]
    assert ended["correlation"] == pytest.approx(0.5) and of_both["correlation"] == pytest.approx((0.5 + 0.5 - 1) / 3)


def test_a_block_committed_at_once_has_no_order():
    results = pd.DataFrame({"prompt_tokens": [2], "step": [[1, 1, 2]], "endless": [False]})
    assert trace.order_in_full_blocks(results, 2)["correlation"] is None
    assert trace.order_in_full_blocks(results, 4) == {"positions": [], "correlation": None, "blocks": 0}


def test_a_recorded_decoding_is_the_decoding(subject):
    found = measure(subject, settings("measurement=trace", "decoding.threshold=0.3"))["result"]
    example, size = found["example"], found["block_size"]
    cells = pd.DataFrame(example["cells"])
    assert len(example["tokens"]) == cells[cells["committed"]]["position"].nunique()
    for position, seen in cells.groupby("position"):
        assert list(seen["committed"]) == [False] * (len(seen) - 1) + [True]  # masked until it is committed
        assert seen["confidence"].between(0, 1).all() and (position // size == seen["position"] // size).all()
    assert cells.groupby("step")["position"].agg(lambda p: (p // size).nunique()).eq(1).all()  # one block a forward


def test_a_recorder_decides_as_the_decoder_it_wraps(llama):
    scorer = denoiser(llama, "block", 4, False)
    prompts = [[5, 6, 7, 8, 9], [11]]
    for decoder in (Threshold(0.3), Fixed(2)):
        for prompt in prompts:
            made, seen = trace.decode_recording(scorer, decoder.rule, Request([prompt], 8, EOS_ID))
            assert [made] == decoder.generate(scorer, Request([prompt], 8, EOS_ID)) and seen


def test_the_losses_by_position_add_up_to_the_likelihood(subject):
    """The same draws, so the same bound; and the parent's, which is exact."""
    tokenizer = subject.converted.tokenizer
    found = measure(subject, settings("measurement=position_loss"))["result"]
    rows, num_bytes = windows(list(position_loss.prose.chapters("test")), tokenizer, 32, 3)
    for name in ("dlm", "ar"):
        bound = likelihood(getattr(subject, name), rows, num_bytes, 2, 64)
        sequence, block = found[name]["sequence"], found[name]["block"]
        assert sequence["position"] == list(range(1, 32)) and block["position"] == [0, 1, 2, 3]
        assert np.mean(sequence["nelbo"]) == pytest.approx(bound.nats, rel=1e-5)
        weights = [7, 8, 8, 8]  # position 0 of a row is context
        assert np.average(block["nelbo"], weights=weights) == pytest.approx(bound.nats, rel=1e-5)
    assert found["ar"]["sequence"]["nll"] == pytest.approx(found["ar"]["sequence"]["nelbo"])


def test_by_position_by_hand():
    weighted, plain = torch.tensor([[2.0, 4.0], [4.0, 0.0]]), torch.tensor([[1.0, 1.0], [3.0, 0.0]])
    count, maskable = torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    found = position_loss.by_position(weighted, plain, count, maskable, torch.arange(2))
    assert found["position"] == [0, 1] and found["n"] == [2, 1]
    assert found["nelbo"] == [3.0, 4.0] and found["nll"] == [pytest.approx(4 / 3), 1.0]
    assert found["standard_error"] == [pytest.approx(math.sqrt(2) / math.sqrt(2)), None]


def test_masking_frequencies_are_the_schemes_own(subject):
    """Half-life 0.1 at block size 4, one hidden token: softmax of beta (1 - t) i at the levels that hide one."""
    found = make(OmegaConf.create(settings("measurement=masked", "measurement.draws=40000")))(subject)
    assert isinstance(subject.masking, Position)
    assert found["by_hidden"][0] is None and found["by_hidden"][4] == [1.0] * 4
    assert [round(sum(p)) for p in found["by_hidden"][1:]] == [1, 2, 3, 4]
    beta, i = math.log(2) / (0.1 * 4), torch.arange(4, dtype=torch.float64)
    levels = torch.linspace(0.001, 1.5 / 4, 1000, dtype=torch.float64)
    expected = torch.stack([torch.softmax(beta * (1 - t) * i, 0) for t in levels]).mean(0)
    assert found["by_hidden"][1] == pytest.approx(expected.tolist(), abs=0.02)
    assert found["probability"] == sorted(found["probability"])


def test_a_text_embedding_is_the_mean_over_its_own_tokens_whatever_shares_its_batch(subject):
    tokenizer, dlm = subject.converted.tokenizer, subject.dlm
    texts = ["In the beginning God created the heaven and the earth.", "And it was so."]
    together = embedding.pooled(dlm, embedding.Bidir(1), tokenizer, texts, 2)
    alone = np.concatenate([embedding.pooled(dlm, embedding.Bidir(1), tokenizer, [t], 1) for t in texts])
    assert together == pytest.approx(alone, abs=1e-5)
    causal = embedding.pooled(dlm, embedding.AR(), tokenizer, texts, 2)
    with torch.no_grad():
        ids = torch.tensor([tokenizer(texts[0])["input_ids"]])
        hidden = dlm.model(ids, output_hidden_states=True).hidden_states[-1][0].mean(0).numpy()
    assert causal[0] == pytest.approx(hidden / np.linalg.norm(hidden), abs=1e-5)
    assert abs(causal - together).max() > 1e-3


def test_embedding_tasks_know_a_good_embedding_from_none():
    """Bags of words against noise."""
    rng = np.random.default_rng(0)

    def words(texts):
        made = np.zeros((len(texts), 512))
        for row, text in zip(made, texts, strict=True):
            for word in text.lower().split():
                row[hash_of(word)] += 1
        return embedding.normalize(made)

    def noise(texts):
        return embedding.normalize(rng.normal(size=(len(texts), 16)))

    for task in embedding.TASKS:
        good, none = task(words, 100), task(noise, 100)
        assert good["score"] > none["score"] and good["n"] > 0 and good["metric"]
        assert good["low"] is None or good["low"] < good["score"] < good["high"]


def hash_of(word: str) -> int:
    return sum(ord(c) * 31**i for i, c in enumerate(word)) % 512
