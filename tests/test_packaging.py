"""What is needed at run time is in the package, wherever a command is started."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from common import CONF, ROOT
from hydra.utils import get_object
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.version import Version

from analysis.plan.compose import compose_by_hydra
from dlm.__main__ import commands
from dlm.config import folders

pytestmark = pytest.mark.trains

SOURCES = (
    "dlm",
    "analysis",
    "conf",
    "sweeps",
    "reports/ablation",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
)
SMALL = ("scale=smoke", "evaluation=none", "evaluation.tasks_per_family=0", "logger=csv", "tokens=512")
SMALL += ("data.length=64", "data.batch_size=4", "data.val_rows=4")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of programs of an environment in which the wheel is installed, beside the libraries of this one."""
    root = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:  # a build leaves files beside what it builds
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, root / "source" / name)
    pip, quiet = [sys.executable, "-m", "pip"], ["--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", *quiet, "--no-build-isolation", "-w", root, root / "source"], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "env"], check=True)
    (wheel,) = root.glob("dlm-*.whl")
    subprocess.run([*pip, "--python", root / "env" / "bin" / "python", "install", *quiet, wheel], check=True)
    (packages,) = (root / "env" / "lib").glob("python*/site-packages")
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "libraries.pth").write_text("\n".join(libraries))  # their own .pth files, such as ours, do not count
    return root / "env" / "bin"


def ended(folder: Path, *command: object) -> subprocess.CompletedProcess:
    """A command that was started in a folder and has ended."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)


def started(folder: Path, *command: object) -> str:
    """What a command prints; AssertionError where it fails."""
    done = ended(folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_wheel_trains_and_renders_from_an_empty_folder(installed, tmp_path):
    said = started(tmp_path, installed / "python", "-c", "import dlm; print(dlm.__path__[0])")
    assert said.startswith(str(installed.parent))
    started(tmp_path, installed / "dlm-train", *SMALL)
    (record,) = tmp_path.glob("runs/*/run.json")
    assert '"finished"' in record.read_text()
    assert "to train" in started(tmp_path, installed / "dlm-study", "sweeps/*.yaml", "scale=smoke", "--dry-run")
    assert "Table 7" in started(tmp_path, installed / "dlm-report", "--committed", "--show", "table7_lr")
    assert "finished" in started(tmp_path, installed / "dlm-runs", "list")


CHAT = ("data=chat", "data.path=chat.jsonl", "data.template=plain", "model=tiny", "recipe=none", "block_size=8")


@pytest.fixture(scope="module")
def day(installed, tmp_path_factory) -> Path:
    """A folder in which a researcher has prepared data and trained a run on them."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("day")
    rows = ({"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(60))
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "documents of" in started(folder, installed / "dlm-data", "prepare", *CHAT, *SMALL)
    said = started(folder, installed / "dlm-train", *CHAT, *SMALL)
    assert "preparing" not in said and "data chat: 5" in said  # it reads what was prepared
    return folder


@pytest.mark.slow
def test_a_researcher_s_day_with_an_installed_wheel(installed, day):
    assert "2 jobs" in started(day, installed / "dlm-train", "-m", *CHAT, *SMALL, "lr=1e-3,3e-3")
    runs = [json.loads(path.read_text()) for path in day.glob("runs/*/run.json")]
    assert sorted(run["config"]["lr"] for run in runs) == [1e-3, 3e-3]  # the first one was there
    asked = ["tasks=gsm8k_100", "harness.limit=1", "harness.max_gen_toks=4"]
    run = next(path.parent.name for path in day.glob("runs/*/run.json"))
    evaluated = ended(day, installed / "dlm-evaluate", f"run={run}", *asked)
    assert (
        "exact_match" in evaluated.stdout and "fatal" not in evaluated.stderr
    )  # as git says where it finds no repository
    started(day, installed / "dlm-dashboard")
    assert {path.name for path in (day / "dashboard").iterdir()} >= {"workspace.json", "report.json"}
    started(day, installed / "dlm-export", f"run={run}", "to=my_dlm")
    assert "exact_match" in started(day, installed / "dlm-evaluate", "run=my_dlm", *asked)
    assert started(day, installed / "dlm-runs", "list").count("finished") >= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["dlm-train", *CHAT, *SMALL, "data.lenght=32"], "did you mean .*length"),
        (["dlm-train", *CHAT, *SMALL, "data.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["dlm-train", *CHAT, *SMALL, "block_size=7"], "block_size 7 must divide data.length 64"),
        (["dlm-evaluate", "run=nonsuch", "tasks=gsm8k_100"], "nonsuch"),
        (["dlm-export", "run=nonsuch", "to=my_dlm"], "nonsuch"),
    ],
)
def test_a_wrong_input_of_that_day_is_one_clear_line(command, message, installed, day):
    program, *arguments = command
    done = ended(day, installed / program, *arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode and len(lines) == 1 and re.search(message, lines[0]), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_wheel_holds_every_config_and_sweep(installed):
    (shipped,) = installed.parent.glob("lib/python*/site-packages/dlm/shipped")
    for name in ("conf", "sweeps"):
        ours = {path.relative_to(ROOT): path.read_bytes() for path in (ROOT / name).rglob("*.yaml")}
        assert ours == {path.relative_to(shipped): path.read_bytes() for path in (shipped / name).rglob("*.yaml")}


def test_the_working_directory_s_own_configs_add_to_the_package_s_and_win(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    text = (CONF / "loss" / "mean.yaml").read_text()
    (tmp_path / "conf" / "loss" / "mine.yaml").write_text(text)
    (tmp_path / "conf" / "loss" / "nelbo.yaml").write_text(text)
    mean, mine, nelbo, cart = (
        compose_by_hydra.__wrapped__("train", (f"loss={name}",)).loss for name in ("mean", "mine", "nelbo", "cart")
    )
    assert mine == mean == nelbo != cart


def test_sweeps_of_the_package_are_found_from_anywhere_and_those_of_the_working_directory_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folders.sweep_files("sweeps/*.yaml") == sorted((ROOT / "sweeps").glob("*.yaml"))
    assert folders.sweep_files("table7_lr.yaml") == [ROOT / "sweeps" / "table7_lr.yaml"]
    (tmp_path / "table7_lr.yaml").touch()
    assert folders.sweep_files("table7_lr.yaml") == [Path("table7_lr.yaml")]
    assert folders.sweep_files("nowhere.yaml") == [Path("nowhere.yaml")]  # whoever reads it says so


def test_the_constraints_of_the_lower_end_are_the_bounds_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = map(Requirement, project["dependencies"] + project["optional-dependencies"]["test"])
    bounds = {r.name: Version(s.version) for r in named for s in r.specifier if s.operator == ">="}
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pinned = (line.split("==") for line in lines if not line.startswith("#"))
    assert {name: Version(version) for name, version in pinned} == bounds


def test_every_command_is_listed_with_what_it_does():
    found = dict(commands())
    described = {path.stem for path in (ROOT / "dlm").glob("*.py") if 'if __name__ == "__main__"' in path.read_text()}
    assert {f"python -m dlm.{name}" for name in described - {"__main__"}} | {"python -m dlm.runs"} <= found.keys()
    assert all(10 < len(what) < 80 and "python" not in what for what in found.values())


def test_every_command_of_dlm_is_a_program_of_the_installed_package():
    programs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    ours = {command.split()[-1].removeprefix("dlm.") for command, _ in commands() if " dlm." in command}
    assert {f"dlm-{name}" for name in ours} <= programs.keys()
    assert all(callable(get_object(target.replace(":", "."))) for target in programs.values())


def test_the_dockerfile_copies_what_the_package_is_built_from_and_starts_a_command_that_there_is():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    let_in = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    assert copied == {*SOURCES, "constraints.txt"} <= let_in
    (entry,) = [json.loads(line.removeprefix("ENTRYPOINT ")) for line in lines if line.startswith("ENTRYPOINT ")]
    assert entry[:3] == ["python", "-m", "dlm.serve"]
    assert {word.partition("=")[0] for word in entry[3:]} <= OmegaConf.load(CONF / "serve.yaml").keys()
