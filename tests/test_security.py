"""Loading executes nothing but our own code, and no secret is written."""

import json
import sys

import pytest
from common import CONF, config
from omegaconf import OmegaConf

from dlm.config.build import make
from dlm.config.command_line import hydra_command
from dlm.config.targets import TRUSTED, require_known, trust, trusted
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


def with_option(node, **options):
    return OmegaConf.create(OmegaConf.to_container(node, resolve=True) | options)


@pytest.fixture
def mylab(tmp_path, monkeypatch):
    """A package of the user's, with a masking scheme."""
    (tmp_path / "mylab.py").write_text(
        "import os\nfrom dlm.masking.uniform import Uniform\n"
        "class Mine(Uniform):\n    def __init__(self, shade, **kwargs):\n"
        "        super().__init__(**kwargs)\n        self.shade = shade\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(TRUSTED, raising=False)
    yield with_option(config("masking=uniform").masking, _target_="mylab.Mine", shade=0.5)
    sys.modules.pop("mylab", None)


def test_a_config_may_name_the_code_of_a_package_that_the_user_trusts(mylab, monkeypatch):
    with pytest.raises(ValueError, match=r"'mylab.Mine' is not code .* needs trusted_packages=\[mylab\]"):
        make(mylab)
    monkeypatch.setenv(TRUSTED, "other, mylab")
    assert make(mylab).shade == 0.5
    with pytest.raises(ValueError, match="^shad is no option: did you mean shade?"):
        make(with_option(mylab, shad=1))
    with pytest.raises(ValueError, match="_target_ 'mylab.os.system' is not code"):
        make(OmegaConf.create({"_target_": "mylab.os.system", "command": "false"}))


def test_what_a_command_trusts_is_in_its_own_config_and_never_in_a_runs(mylab, monkeypatch):
    seen = []
    monkeypatch.setenv(TRUSTED, "")
    monkeypatch.setattr(sys, "argv", ["train", "trusted_packages=[mylab]"])
    hydra_command("train")(lambda cfg: seen.append(make(mylab)))()
    assert seen[0].shade == 0.5 and trusted() == ["mylab"]
    monkeypatch.setenv(TRUSTED, "")
    of_a_run = OmegaConf.create({"trusted_packages": ["mylab"], "masking": mylab})
    with pytest.raises(ValueError, match="'mylab.Mine' is not code"):
        make(of_a_run.masking)
    with pytest.raises(ValueError, match="trusted_packages 'my lab' must be the name of a package"):
        trust(["my lab"])


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
