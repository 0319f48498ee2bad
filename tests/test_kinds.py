"""A value of another kind than its option's is refused by the option's name, whatever the option."""

import math
import re
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest
from common import CONF, config, one_in, option_yaml, options
from omegaconf import OmegaConf, open_dict

from dlm.config import kinds, settings
from dlm.config.build import make
from dlm.config.kinds import accepts, require_kinds, require_options
from dlm.config.names import argument_names

COMMANDS = {
    "train": (settings.Train, settings.Keep),
    "evaluate": (settings.Evaluate,),
    "generate": (settings.Generate,),
    "export": (settings.Export,),
    "measure": (settings.Measure,),
    "policy": (settings.Policy,),
    "replay": (settings.Replay,),
    "embedded": (settings.Embedded,),
    "benchmark": (settings.Benchmark,),
}
PLAIN = {"trainer": settings.Trainer, "evaluation": settings.Evaluation}
GROUPS = [folder.name for folder in CONF.iterdir() if folder.is_dir()]
TEXTS = {g: "".join((CONF / g / f"{o}.yaml").read_text() for o in options(g)) for g in GROUPS}
BUILT = [group for group, text in TEXTS.items() if "_target_:" in text and "@package _global_" not in text]
# Some of them are wrong, whatever the kind.
SAMPLES = ["many", "", 7, -7, 0.5, math.nan, math.inf, True, None, [1], {"role": "user"}]


def leaves(kind, prefix=""):
    """`(path, kind)` of every value that a class of settings has."""
    for name, found in get_type_hints(kind, include_extras=True).items():
        if is_dataclass(found):
            yield from leaves(found, f"{prefix}{name}.")
        else:
            yield prefix + name, found


def flat(values, prefix=""):
    """The paths of the values of a plain config."""
    for key, value in values.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_value_of_a_command_has_its_kind(name):
    has = {field.name for kind in COMMANDS[name] for field in fields(kind)}
    assert set(OmegaConf.load(CONF / f"{name}.yaml")) - {"defaults", "hydra"} == has - set(GROUPS)


@pytest.mark.parametrize("group", PLAIN)
def test_every_value_of_a_group_that_builds_nothing_has_its_kind(group):
    nodes = [OmegaConf.load(CONF / group / f"{option}.yaml") for option in options(group)]
    nodes = [OmegaConf.masked_copy(node, [key for key in node if key != "defaults"]) for node in nodes]
    known = {path for path, _ in leaves(PLAIN[group])}
    assert set().union(*(flat(OmegaConf.to_container(node)) for node in nodes)) == known
    for node in nodes:
        require_kinds(node, PLAIN[group])


@pytest.mark.parametrize(
    ("of", "path", "kind"), [(of, *leaf) for kept in COMMANDS.values() for of in kept for leaf in leaves(of)]
)
def test_a_value_of_a_command_is_refused_by_name_where_it_is_of_another_kind(of, path, kind):
    refused = [value for value in SAMPLES if not accepts(kind, value)]
    assert refused
    for value in refused:
        cfg = OmegaConf.create()
        OmegaConf.update(cfg, path, value, force_add=True)
        with pytest.raises(ValueError, match=rf"^{re.escape(path)} .* must be .*: set {re.escape(path)}=VALUE$"):
            require_kinds(cfg, of)


def targets(node, path):
    """`(path, node)` of everything in a config that is built."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key in node:
            yield from targets(node[key], f"{path}.{key}")


@pytest.mark.parametrize(("group", "option"), one_in(3, [(g, o) for g in BUILT for o in options(g)]))
def test_an_argument_is_refused_by_name_where_it_is_of_another_kind(group, option, monkeypatch):
    monkeypatch.setattr("dlm.config.build.instantiate", lambda *_, **__: None)
    command = {"bench": "benchmark", "measurement": "measure"}.get(group, "train")
    cfg = config(*[f"{group}={option}"] * (command == "measure"), name=command)  # which does not go without
    with open_dict(cfg):
        cfg[group] = option_yaml(group, option)
    plain = {group: OmegaConf.to_container(cfg, resolve=True)[group]}

    def build(config):
        node = OmegaConf.create(config)[group]
        make(node) if "_target_" in node else [make(part) for part in node.values() if part]

    build(plain)  # what the YAML says is of the right kind
    for path, node in targets(plain[group], group):
        if not node["_target_"].startswith("dlm."):
            continue
        wanted = kinds.argument_kinds(kinds.get_object(node["_target_"]))
        for key in set(node) - {"_target_"}:
            assert key in wanted, f"{path}.{key} has no annotation"
            before, refused = node[key], [value for value in SAMPLES if not accepts(wanted[key], value)]
            assert refused
            for node[key] in refused:
                with pytest.raises(ValueError, match=rf"^{re.escape(path)}\.{key} .* must be "):
                    build(plain)
            node[key] = before


@pytest.mark.trains
def test_an_option_that_nothing_reads_is_refused_with_the_nearest_name():
    wrong = {
        "+nonsense=3": "^nonsense is no option: choose one of attention, ",
        "+measurement=decode": "^measurement is no option: choose one of",  # a group of another command
        "+blok_size=3": "^blok_size is no option: did you mean block_size?",
        "+runtime.thread=1": "^runtime.thread is no option: did you mean threads?",
        "+evaluation.skp=true": "^evaluation.skp is no option: did you mean skip?",
        "+budget.unitt=flops": "^budget.unitt is no option: did you mean unit?",
    }
    for override, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            require_options(config(override), "train", settings.Keep, settings.Train)
    for name, of in COMMANDS.items():
        needed = ["run=x", "to=x"] if name == "export" else ["measurement=decode"] if name == "measure" else []
        require_options(config(*needed, name=name), name, *of)
        with pytest.raises(ValueError, match="^runs_dri is no option: did you mean runs_dir?"):
            require_options(config("+runs_dri=x", *needed, name=name), name, *of)


@pytest.mark.trains
def test_an_argument_that_a_target_does_not_take_is_refused_by_name():
    wrong = {
        "+data.lenght=64": ("data", "^data.lenght is no option: did you mean length?"),
        "+masking.veiws=2": ("masking", "^masking.veiws is no option: did you mean views?"),
        "+optimizer.beta=[0,1]": ("optimizer", "^optimizer.beta is no option: did you mean betas?"),  # of a base class
    }
    for override, (group, message) in wrong.items():
        with pytest.raises(ValueError, match=message):
            make(config(override)[group])
    timer = {"_target_": "lightning.pytorch.callbacks.Timer", "durations": "00:00:01:00"}
    with pytest.raises(ValueError, match="^durations is no option: did you mean duration?"):
        make(OmegaConf.create(timer))


def test_every_argument_is_known_of_code_that_takes_any():
    assert argument_names(dict) is None and argument_names(print_kwargs) is None
    assert argument_names(Narrow) == {"wide", "narrow"}


def print_kwargs(**kwargs):
    print(kwargs)


class Wide:
    def __init__(self, wide: int):
        self.wide = wide


class Narrow(Wide):
    def __init__(self, narrow: int, **kwargs):
        super().__init__(**kwargs)
        self.narrow = narrow


def test_what_a_kind_accepts():
    cases = {
        int: ([0, -3], [True, 1.0, "1", None]),
        float: ([0, 1.5], [True, math.nan, math.inf, "1"]),
        str: (["a"], ["", 1, None]),
        kinds.Text: (["", "a"], [1]),
        bool: ([True], [1, "true"]),
        int | None: ([1, None], [0.5]),
        list[int]: ([[], [1]], [[1.5], 1, "12"]),
        tuple[float, float]: ([[0, 1]], [[1], [1, 2, 3]]),
        tuple[int, ...]: ([[], [1, 2]], [["a"]]),
        dict[str, float]: ([{}, {"a": 1}], [{"a": "b"}, {1: 1}, [1]]),
        settings.Count: ([1], [0, 1.5, None]),
        object: ([{"_target_": "x"}], [1, "x", [1]]),
    }
    for kind, (right, wrong) in cases.items():
        assert all(accepts(kind, value) for value in right) and not any(accepts(kind, value) for value in wrong), kind


def test_a_kind_is_said_in_words():
    assert kinds.described(settings.Positive | None) == "a finite number of at least 0 or null"
    assert kinds.described(list[str] | None) == "a list of a name or null"
    assert kinds.described(dict[str, float]) == "a mapping to a finite number"
