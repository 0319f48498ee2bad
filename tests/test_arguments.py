"""A path is what the shell says, whatever Hydra makes of its letters."""

import sys

import pytest
from common import config
from omegaconf import OmegaConf

from dlm.config.arguments import PATHS, with_path_quoted
from dlm.config.command_line import hydra_command

NAMES = ["a=b", "a,b", "übung", "two words", "it's", "~/x", "a(b)", "#1", "a&b;c", "日本", "1", "null.txt"]


@pytest.mark.parametrize("name", NAMES)
def test_any_path_of_the_shell_is_the_options(name):
    for override in ("data.path", "runs_dir", "model.path"):
        argument = with_path_quoted(f"{override}=dir/{name}", swept=False)
        assert OmegaConf.select(config("data=text", "data.path=x", argument), override) == f"dir/{name}"


HYDRAS = ["data.path='a b'", "data.path=a\\,b", "runs_dir=${oc.env:X}", "lr=1,2", "model=a,b"]


@pytest.mark.parametrize("argument", HYDRAS)
def test_what_is_hydras_already_stays(argument):
    assert with_path_quoted(argument, swept=False) == argument


def test_a_sweep_over_paths_stays_one_unless_it_is_the_name_of_a_file(tmp_path):
    both = f"data.path={tmp_path}/a,{tmp_path}/b"
    assert with_path_quoted(both, swept=True) == both
    (tmp_path / "a,b c").write_text("x")
    assert with_path_quoted(f"data.path={tmp_path}/a,b c", swept=True) == f"data.path='{tmp_path}/a,b c'"
    assert with_path_quoted("+data.path=a b", swept=True) == "+data.path='a b'"


@pytest.mark.trains
def test_a_command_is_called_with_its_paths_quoted(monkeypatch, tmp_path):
    seen = []
    command = hydra_command("train")(lambda cfg: seen.append(cfg.runs_dir))
    monkeypatch.setattr(sys, "argv", ["train", "seed=1", f"runs_dir={tmp_path}/a b"])
    command()
    assert seen == [f"{tmp_path}/a b"] and "runs_dir" in PATHS


@pytest.mark.trains
def test_an_option_that_hydra_does_not_know_is_answered_with_the_nearest_one(monkeypatch, capsys):
    wrong = {
        "data.lenght=3": "error: data.lenght is no option: did you mean length?\n",
        "dta.length=3": "error: dta is no option: did you mean data?\n",
        "masking=uniform masking.veiws=2": "error: masking.veiws is no option: did you mean views?\n",
        "attention=blok": "",  # Hydra lists the options of a group
    }
    for line, message in wrong.items():
        monkeypatch.setattr(sys, "argv", ["train", *line.split()])
        with pytest.raises(SystemExit):
            hydra_command("train")(lambda cfg: None)()
        said = capsys.readouterr().err
        assert said.endswith(message) and ("error: " in said) == bool(message)
