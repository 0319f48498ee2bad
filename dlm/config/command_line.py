"""What is typed becomes a config: the commands are Hydra mains that find their configs wherever they are started."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from dlm.config.arguments import with_path_quoted
from dlm.config.folders import CONF, config_folders
from dlm.console import command

MULTIRUN = ("-m", "--multirun")
# Names that options had in earlier versions → their present ones.
RENAMED = {"trainer.volatile": "runtime"}
RENAMED |= {f"logger.{name}": f"logger.wandb.{name}" for name in ("project", "entity", "group")}


class OwnConf(SearchPathPlugin):
    """A `conf/` in the working directory adds to the one of the package, and wins where both have a file."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in config_folders():
            if folder != CONF:
                search_path.prepend("working directory", f"file://{folder}")


Plugins.instance().register(OwnConf)


def hydra_command(config: str, read: Callable[[str], str] = str) -> Callable[[Callable[..., Any]], Callable[[], None]]:
    """Make a function of a config a command, `config` being the name of the config's file. `read` may change each
    argument before Hydra sees it."""

    def decorate(main: Callable[..., Any]) -> Callable[[], None]:
        by_hydra = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(command(main))

        @functools.wraps(main)
        def run() -> None:
            arguments = arranged([present(read(argument)) for argument in sys.argv[1:]])
            swept = any(argument in MULTIRUN for argument in arguments)
            sys.argv[1:] = [with_path_quoted(argument, swept) for argument in arguments]
            by_hydra()

        return run

    return decorate


def present(override: str) -> str:
    """An override under the present name of its option; stderr says so where it was typed under an earlier one.
    `evaluation=null` is `evaluation=none`."""
    key, equals, value = override.partition("=")
    if value == "null" and any((folder / key / "none.yaml").exists() for folder in config_folders()):
        return f"{key}=none"  # Hydra has no null for a group
    for old, new in RENAMED.items():
        name = key.lstrip("+~")
        if f"{name}.".startswith(f"{old}."):
            renamed = new + name[len(old) :]
            say_once(f"{name} is now called {renamed}")
            return key[: len(key) - len(name)] + renamed + equals + value
    return override


@functools.cache
def say_once(line: str) -> None:
    """A line on stderr, the first time that there is reason for it."""
    print(line, file=sys.stderr)


def arranged(arguments: list[str]) -> list[str]:
    """Arguments as Hydra takes them: `-m` anywhere becomes `-m` in front."""
    flags = [argument for argument in arguments if argument in MULTIRUN]
    return flags + [argument for argument in arguments if argument not in MULTIRUN]
