"""Former names of `_target_`s, so that old configs still find their code and run ids stay the same."""

from __future__ import annotations

from typing import Any

# Present name → former name, which stands in old configs and enters the hash of every run id.
RENAMED = {
    "dlm.data.text.Text": "dlm.data.module.Text",
    "dlm.optimizer.adamw.AdamWCosine": "dlm.optim.AdamWCosine",
    "dlm.model.parent.load_gguf_package": "dlm.parent.load_gguf_package",
    "dlm.model.parent.load_parent": "dlm.parent.load_parent",
    "dlm.model.parent.load_run": "dlm.parent.load_run",
    "dlm.model.parent.new_parent": "dlm.parent.new_parent",
    "dlm.trainable.full.Full": "dlm.trainable.Full",
    "dlm.trainable.lora.Lora": "dlm.trainable.Lora",
}
PRESENT = {old: new for new, old in RENAMED.items()}


def with_targets(config: Any, names: dict[str, str]) -> Any:
    """A copy of a plain config (dicts and lists) with every `_target_` translated by `names`."""
    if isinstance(config, list):
        return [with_targets(value, names) for value in config]
    if not isinstance(config, dict):
        return config
    renamed = {key: with_targets(value, names) for key, value in config.items()}
    target = renamed.get("_target_")
    return renamed | {"_target_": names.get(target, target)} if isinstance(target, str) else renamed
