"""Loading executes nothing but our own code, and no secret is written."""

import json
import sys

import pytest
from conftest import CONF, config
from omegaconf import OmegaConf

from dlm.config.build import make
from dlm.config.targets import require_known
from dlm.runs.redact import redacted
from dlm.runs.run import Run

FORBIDDEN = [
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "dlm.runs.run.subprocess.run",  # through us to another module
    "dlm.train.shutil.rmtree",
    "torch.hub.load",
    "torch.load",
    "torch.os.system",
    "transformers.utils.hub.subprocess.run",
    "lightning.pytorch.trainer.trainer.os.system",
    "dlm.runs.identity.VOLATILE",
    "dlm.nothing.there",
    "datasets.load_dataset",
    "",
]


@pytest.mark.parametrize("target", FORBIDDEN)
def test_a_config_cannot_name_foreign_code(target):
    with pytest.raises(ValueError, match="_target_ .* (is not code that a config may name|cannot be found)"):
        make(OmegaConf.create({"_target_": target, "path": "x"}))


def test_foreign_code_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "foreign_code.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="is not code that a config may name"):
        require_known({"_target_": "foreign_code.anything"})
    assert "foreign_code" not in sys.modules


def test_nor_can_it_at_any_depth():
    deep = {"_target_": "dlm.loss.mean.Mean", "a": [{"b": {"_target_": "os.system", "command": "false"}}]}
    with pytest.raises(ValueError, match="_target_ 'os.system' is not code"):
        make(OmegaConf.create(deep))


def test_our_own_configs_name_only_known_code():
    # Those of `measurement` import packages that are installed only where they are used.
    targets = [p for p in CONF.rglob("*.yaml") if "_target_" in p.read_text() and p.parent.name != "measurement"]
    assert len(targets) > 20
    for path in targets:
        require_known(OmegaConf.to_container(OmegaConf.load(path), resolve=False))
    require_known({"_target_": "torch.optim.AdamW"})


def test_no_secret_reaches_a_record_or_a_config(tmp_path, monkeypatch):
    secret = "3f9a1c7e5b2d8046"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # its name would match
    run = Run.create(config(f"runs_dir={tmp_path}", f"logger.wandb.project={secret}"), {})
    run.update(error=f"Traceback: 401 for {secret} and hf_abcdefghij, false")
    written = "".join(path.read_text() for path in run.folder.iterdir())
    assert secret not in written and "hf_abcdefghij" not in written
    assert run.record["error"] == "Traceback: 401 for <WANDB_API_KEY> and <HF_TOKEN>, false"
    assert json.loads(run.record_path.read_text())["config"]["logger"]["wandb"]["project"] == "<WANDB_API_KEY>"
    assert redacted("nothing") == "nothing"
