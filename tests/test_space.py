"""The room on the disk that a run asks for is what it takes."""

from pathlib import Path

import pytest
from common import config, everyday

from dlm.config.build import build
from dlm.config.training import Training
from dlm.config.values import train_settings
from dlm.runs.run import Run
from dlm.trainable import gate
from dlm.trainer.fit import fit, save_parent_reference
from dlm.trainer.resources import space_of, step_of

STEPS = ("data.batch_size=2", "tokens=1536", "evaluation=none", "logger=csv", "runtime.checkpoint_every=1")


def size(*paths: Path) -> int:
    return sum(file.stat().st_size for path in paths for file in ([path] if path.is_file() else path.rglob("*")))


@pytest.mark.trains
@pytest.mark.parametrize("trainable", everyday(["full", "lora"]))
def test_a_run_asks_for_the_room_that_it_takes_at_its_end(trainable, runs_dir, short_prose, monkeypatch):
    """When the result is written, both checkpoints are still there. (Adapters are in the checkpoints only, and few.)"""
    cfg, taken, asked, save_model = (
        config(*STEPS, f"trainable={trainable}", f"runs_dir={runs_dir}"),
        [],
        [],
        gate.save_model,
    )

    def watched(model, folder):
        save_model(model, folder)
        taken.append(size(folder, runs_dir / ".parents", run.checkpoint.parent))

    monkeypatch.setattr(gate, "save_model", watched)
    monkeypatch.setattr(Run, "require_space", lambda self, num_bytes: asked.append(num_bytes))
    run = Run.create(cfg, {})
    fit(Training.of(cfg), run, 1)
    assert len([*run.checkpoint.parent.glob("*.ckpt")]) == 2
    assert 0.95 * asked[0] <= taken[0] <= 1.02 * asked[0]


def test_a_resumed_run_asks_only_for_what_is_not_written_yet(runs_dir, short_prose, monkeypatch):
    """It began with room for all of it, and has filled most of that room itself."""
    cfg, asked = config(*STEPS, f"runs_dir={runs_dir}"), []
    run, experiment, settings = Run.create(cfg, {}), build(cfg), train_settings(cfg)
    whole = space_of(experiment, step_of(settings, experiment))
    monkeypatch.setattr(Run, "require_space", lambda self, num_bytes: asked.append(num_bytes))
    reference = save_parent_reference(settings, run, experiment, resumed=False)
    run.checkpoint.parent.mkdir()
    run.checkpoint.write_bytes(b"x" * 1000)
    save_parent_reference(settings, run, experiment, resumed=True)
    assert asked == [whole, whole - size(reference) - 1000]
