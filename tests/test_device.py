"""Models compute on the device that was asked for, and what is drawn for them is drawn there."""

import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from common import CONF, config, exit_code
from hydra.core.hydra_config import HydraConfig
from transformers import PreTrainedTokenizerBase

from dlm import evaluate, generate, measure, policy, train
from dlm.config.finished import FinishedRun
from dlm.decoding.engine.canvas import Generation
from dlm.measurement.base import Subject
from dlm.measurement.store import measure as measured
from dlm.model.device import usable_device

COMMANDS = {evaluate: [], generate: [], measure: ["measurement=masked"], policy: []}


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)


@pytest.fixture
def elsewhere(monkeypatch):
    """A device that is not the CPU: tensors on it have no values."""
    monkeypatch.setattr("dlm.config.finished.usable_device", lambda name: torch.device("meta"))


def test_auto_is_the_gpu_where_there_is_one_and_a_name_is_that_device(two_gpus):
    assert [str(usable_device(name)) for name in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]
    with pytest.raises(ValueError, match="device 'cuda:2' is not on this machine: .* auto, cpu, cuda, cuda:0, cuda:1$"):
        usable_device("cuda:2")


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert str(usable_device("auto")) == "cpu"
    with pytest.raises(ValueError, match="device 'cuda' is not on this machine: choose one of auto, cpu$"):
        usable_device("cuda")


def test_both_models_of_a_finished_run_are_placed_on_its_device_whole(finished_run, elsewhere):
    finished = FinishedRun(finished_run)
    for denoiser in (finished.dlm, finished.ar):
        tensors = [*denoiser.model.parameters(), *denoiser.model.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert finished.converted.model is finished.dlm.model and finished.parent.model is finished.ar.model


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__.partition(".")[2])
def test_every_command_passes_its_device_on(command, finished_run, monkeypatch, capsys):
    def refused(name):
        raise ValueError(f"no device {name}")

    monkeypatch.setattr("dlm.config.finished.usable_device", refused)
    arguments = [f"run={finished_run.id}", f"runs_dir={finished_run.folder.parent}", "device=cuda:7"]
    monkeypatch.setattr(sys, "argv", ["dlm", "--config-path", str(CONF), *arguments, *COMMANDS[command]])
    assert exit_code(command.main) == 1
    assert "no device cuda:7" in capsys.readouterr().err
    HydraConfig.instance().cfg = None


def test_what_was_measured_on_one_device_is_not_measured_again_on_another(finished_run, monkeypatch):
    settings = {"_target_": "dlm.measurement.masked.Masked", "draws": 4}
    first = measured(Subject(finished_run, "cpu"), settings)
    assert first["machine"]["device"] == "cpu"
    monkeypatch.setattr("dlm.measurement.masked.Masked.__call__", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr("dlm.config.finished.usable_device", lambda name: torch.device("meta"))
    assert measured(Subject(finished_run), settings) == first


@pytest.mark.trains
def test_a_run_is_evaluated_on_the_device_that_it_was_trained_on(finished_run, monkeypatch):
    """Lightning takes a model back to the CPU when training ends."""
    asked = []
    monkeypatch.setattr(train, "device_of", lambda cfg: torch.device("meta"))
    monkeypatch.setattr(train, "evaluate_run", lambda run, cfg, decoding, device: asked.append(device) or {})
    train.finish(config(f"runs_dir={finished_run.folder.parent}"), finished_run)
    assert asked == ["meta"] and finished_run.record["machine"]["device"] == "meta"


def test_samples_are_drawn_on_the_device_of_the_logits(monkeypatch):
    """A generator of another device than its tensor's is refused by the kernels of a GPU."""

    class Recorded(torch.Generator):  # this build of torch may have none for a GPU
        def __new__(cls, device="cpu"):
            made = super().__new__(cls)
            made.asked = torch.device(device)
            return made

    made, cuda = Generation([5], 1, 3, [1], [1.0]), torch.device("cuda:1")
    tokenizer = Mock(PreTrainedTokenizerBase, **{"decode.return_value": "x"})
    decoder = Mock(**{"generate.return_value": [made]})
    monkeypatch.setattr("torch.Generator", Recorded)
    monkeypatch.setattr(generate.Speaker, "ends", [0])
    denoiser = SimpleNamespace(model=SimpleNamespace(device=cuda))
    assert generate.Speaker("dLM", denoiser, tokenizer, decoder).answer([5, 6], 4, [], 0).text == "x"
    requests = [call.args[1] for call in decoder.generate.call_args_list]
    assert [request.generator.asked for request in requests] == [cuda, cuda]
