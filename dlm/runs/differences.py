"""What tells runs apart, found in their configs, so that a new option needs no entry here."""

from __future__ import annotations

from typing import Any

from dlm.runs.run import NEUTRAL, flatten, is_volatile


def differences(records: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """For every run the options in which it is not like all others: `{"attention": "block", "lr": "0.001"}`."""
    options = {name: options_of(record) for name, record in records.items()}
    kept = [option for option in dict.fromkeys(o for own in options.values() for o in own) if differs(option, options)]
    return {name: {o: own[o] for o in kept if o in own} for name, own in options.items()}


def options_of(record: dict[str, Any]) -> dict[str, str]:
    """The options of each group and the values of a run, but for those that follow from others: a group's option names
    its class, and a value that stands at the top as well (`block_size`, `lr`) is that one."""
    config, choices = record.get("config", {}), record.get("choices", {})
    values = {key: str(value) for key, value in flatten(config).items() if not is_volatile(key)}
    own = {
        key: value
        for key, value in values.items()
        if not ("." in key and (values.get(key.split(".")[-1]) == value or key.split(".")[-1] == "_target_"))
    }
    return own | {group: str(option) for group, option in choices.items() if not is_volatile(group)}


def differs(option: str, options: dict[str, dict[str, str]]) -> bool:
    """Whether a value is not the same in all runs that chose the same option of its group (in others it follows from
    that choice); runs from before there was an option have its neutral value."""
    group, neutral = option.split(".")[0], str(NEUTRAL[option]) if option in NEUTRAL else None
    values: dict[str | None, set[str | None]] = {}
    for own in options.values():
        choice = own.get(group) if "." in option else None
        values.setdefault(choice, set()).add(own.get(option, neutral))
    return any(len(found) > 1 for found in values.values())
