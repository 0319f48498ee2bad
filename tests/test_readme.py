"""Every command of the README is one that there is; the two main ones work, at a size of seconds."""

import importlib
import re
import shlex
import subprocess
import sys

import pytest
from common import ROOT
from omegaconf import OmegaConf

from dlm import __main__ as overview

pytestmark = pytest.mark.trains

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [
    line
    for block in re.findall(r"^```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.strip()
]
COMMANDS = [shlex.split(line, comments=True) for line in LINES]
PYTHON = [words[2:] for words in COMMANDS if words[0] == "python"]
MAKE = [words[1:] for words in COMMANDS if words[0] == "make"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
HYDRA = {"dlm.train", "dlm.generate", "dlm.export"}


def test_every_line_is_a_python_module_or_a_target_of_make():
    assert len(PYTHON) + len(MAKE) == len(COMMANDS) and len(PYTHON) > 4 and len(MAKE) > 3
    assert {words[0] for words in PYTHON} - HYDRA <= {"dlm"}


@pytest.mark.parametrize("words", MAKE, ids=" ".join)
def test_a_target_of_make_is_there_with_the_variables_that_it_is_given(words):
    target, *variables = words
    assert re.search(rf"^{target}:.*## ", MAKEFILE, re.MULTILINE)
    for variable in variables:
        name, _, value = variable.partition("=")
        assert re.search(rf"\$\((if \$\()?{name}\)", MAKEFILE)
        assert value == "1" or f"ifeq ($({name}),{value})" in MAKEFILE


@pytest.mark.parametrize("words", [w for w in PYTHON if w[0] in HYDRA], ids=" ".join)
def test_a_command_is_composed_as_it_stands(words, monkeypatch, capsys):
    """By the command itself, which `--cfg job` lets print its config and do nothing. Of a sweep, the first job."""
    command, *given = words
    arguments = [first_of(argument) for argument in given if argument != "-m"] if "-m" in given else given
    monkeypatch.setattr(sys, "argv", [command, *arguments, "--cfg", "job"])
    importlib.import_module(command).main()
    printed = OmegaConf.create(capsys.readouterr().out)
    for key, _, value in (argument.partition("=") for argument in arguments):
        is_option = (ROOT / "conf" / key / f"{value}.yaml").is_file()
        assert is_option or OmegaConf.select(printed, key) == OmegaConf.from_dotlist([f"x={value}"]).x


def first_of(argument):
    key, _, value = argument.partition("=")
    if value == "glob(*)":
        return f"{key}={sorted(path.stem for path in (ROOT / 'conf' / key).glob('*.yaml'))[0]}"
    return f"{key}={value.split(',')[0]}"


def test_the_list_of_commands_names_every_module_of_the_readme(capsys):
    overview.main()
    listed = capsys.readouterr().out
    assert all(f"python -m {words[0]} " in listed for words in PYTHON if words[0] != "dlm")


def run(folder, *words):
    """A command as a process of its own, in the repository, with its runs in a folder; what it printed."""
    command = [sys.executable, "-m", *words, f"runs_dir={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_commands_of_the_readme_train_decode_and_export(tmp_path):
    """At scale=smoke, in the order of the page."""
    words = {found[0]: found[1:] for found in reversed(PYTHON)}
    assert "exact match" in run(tmp_path / "runs", "dlm.train", "scale=smoke", "logger=csv")
    assert "NFE" in run(tmp_path / "runs", "dlm.generate", *words["dlm.generate"])
    (made,) = (tmp_path / "runs").glob("*/run.json")
    folder = tmp_path / "exported"
    run(tmp_path / "runs", "dlm.export", f"run={made.parent.name}", f"to={folder}")
    assert (folder / "config.json").exists()


def test_the_readme_is_read_in_a_few_minutes():
    assert len(README.splitlines()) <= 120
