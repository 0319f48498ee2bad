"""The longest row that a model can read: the one check of every row that is trained, evaluated, decoded or exported.

Learned positions end with their table. Rotary ones go on, but the model was not trained on them, so its outputs there
would not measure it. Rows beyond the limit are refused in both cases.
"""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel


def num_positions(config: PreTrainedConfig) -> int | None:
    """The number of positions that a model was trained for (`max_position_embeddings` or its other names in configs);
    None if the config sets no limit."""
    config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        if limit := getattr(config, name, None):
            return limit
    return None


def require_positions(model: PreTrainedModel, length: int, what: str, remedy: str = "choose at most {limit}") -> None:
    """Raises `ValueError` if a row of `length` tokens exceeds the model's positions. `what` describes the row in the
    message; `remedy` may contain `{limit}`."""
    require_within(num_positions(model.config), length, what, remedy)


def require_within(limit: int | None, length: int, what: str, remedy: str = "choose at most {limit}") -> None:
    """The same with the model's number of positions for its `limit`."""
    if limit is not None and length > limit:
        raise ValueError(f"{what} exceeds the model's {limit} positions: {remedy.format(limit=limit)}")
