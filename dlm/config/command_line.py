"""Turns the command line into a config. Commands are Hydra mains that find their configs from any working directory."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

from dlm.config.arguments import with_path_quoted
from dlm.config.folders import CONF, config_folders
from dlm.config.hints import hints
from dlm.config.targets import trust
from dlm.console import command

MULTIRUN = ("-m", "--multirun")
# Former name of an option → its present name.
RENAMED = {"trainer.volatile": "runtime"}
RENAMED |= {f"logger.{name}": f"logger.wandb.{name}" for name in ("project", "entity", "group")}


class OwnConf(SearchPathPlugin):
    """Adds a `conf/` in the working directory to the search path. Its files take precedence over the package's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in config_folders():
            if folder != CONF:
                search_path.prepend("working directory", f"file://{folder}")


Plugins.instance().register(OwnConf)


def hydra_command(config: str, read: Callable[[str], str] = str) -> Callable[[Callable[..., Any]], Callable[[], None]]:
    """Decorate a function of a config so that it becomes a command; `config` names the config file. `read` may rewrite
    each argument before Hydra parses it."""

    def decorate(main: Callable[..., Any]) -> Callable[[], None]:
        entered: list[bool] = []
        task = command(trusting(main, entered))
        by_hydra = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(task)

        @functools.wraps(main)
        def run() -> None:
            arguments = flags_first([with_present_name(read(argument)) for argument in sys.argv[1:]])
            swept = any(argument in MULTIRUN for argument in arguments)
            sys.argv[1:] = [with_path_quoted(argument, swept) for argument in arguments]
            entered.clear()
            try:
                by_hydra()
            except SystemExit:
                if not entered:  # Hydra has refused the arguments
                    for hint in hints(config, sys.argv[1:]):
                        print(f"error: {hint}", file=sys.stderr)
                raise

        return run

    return decorate


def trusting(main: Callable[..., Any], entered: list[bool]) -> Callable[..., Any]:
    """A Hydra main that lets configs name code of the `trusted_packages` of its own config, which the user composed. It
    leaves a mark in `entered`."""

    @functools.wraps(main)
    def run(cfg: DictConfig) -> Any:
        entered.append(True)
        trust(cfg.get("trusted_packages") or ())
        return main(cfg)

    return run


def with_present_name(override: str) -> str:
    """Rewrite an override that uses a former option name, with a note on stderr. `evaluation=null` and `~evaluation`
    become `evaluation=none`."""
    key, equals, value = override.partition("=")
    group = key.removeprefix("~")
    none = value == "null" or override == f"~{group}"
    if none and any((folder / group / "none.yaml").exists() for folder in config_folders()):
        return f"{group}=none"  # Hydra accepts no null for a group
    for old, new in RENAMED.items():
        name = key.lstrip("+~")
        if f"{name}.".startswith(f"{old}."):
            renamed = new + name[len(old) :]
            print_once(f"{name} is now called {renamed}")
            return key[: len(key) - len(name)] + renamed + equals + value
    return override


@functools.cache
def print_once(line: str) -> None:
    """Print a line on stderr, once per process."""
    print(line, file=sys.stderr)


def flags_first(arguments: list[str]) -> list[str]:
    """Move `-m` to the front, where Hydra expects it."""
    flags = [argument for argument in arguments if argument in MULTIRUN]
    return flags + [argument for argument in arguments if argument not in MULTIRUN]
