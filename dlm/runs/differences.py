"""The options in which runs differ, derived from their configs, so that a new option needs no entry here."""

from __future__ import annotations

from typing import Any

from dlm.runs.identity import NEUTRAL, flatten, is_volatile


def differences(records: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """For every run, the options that are not the same in all runs: `{"attention": "block", "lr": "0.001"}`."""
    by_run = {name: options_of(record) for name, record in records.items()}
    names = dict.fromkeys(option for options in by_run.values() for option in options)
    differing = [option for option in names if differs(option, by_run)]
    return {name: {o: options[o] for o in differing if o in options} for name, options in by_run.items()}


def options_of(record: dict[str, Any]) -> dict[str, str]:
    """The choices and values of a run, without the values that follow from others: a `_target_` follows from the choice
    of its group, and a nested value equal to a top-level one (`block_size`, `lr`) from that one."""
    config, choices = record.get("config", {}), record.get("choices", {})
    values = {key: str(value) for key, value in flatten(config).items() if not is_volatile(key)}
    independent = {
        key: value
        for key, value in values.items()
        if not ("." in key and (values.get(key.split(".")[-1]) == value or key.split(".")[-1] == "_target_"))
    }
    return independent | {group: str(option) for group, option in choices.items() if not is_volatile(group)}


def differs(option: str, by_run: dict[str, dict[str, str]]) -> bool:
    """Whether an option has several values among the runs with the same choice of its group (otherwise its value
    follows from that choice). Runs without the option have its neutral value."""
    group, neutral = option.split(".")[0], str(NEUTRAL[option]) if option in NEUTRAL else None
    values_by_choice: dict[str | None, set[str | None]] = {}
    for options in by_run.values():
        choice = options.get(group) if "." in option else None
        values_by_choice.setdefault(choice, set()).add(options.get(option, neutral))
    return any(len(values) > 1 for values in values_by_choice.values())
