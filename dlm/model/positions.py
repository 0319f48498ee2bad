"""How long a row a model can read: the one check of every row that is trained, evaluated, decoded or exported.

Learned positions end where their table ends. Rotary ones go on, but nobody trained the model on them, so what it says
there is no measurement of it: both are refused.
"""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel


def num_positions(config: PreTrainedConfig) -> int | None:
    """The positions that a model was made for (`max_position_embeddings`, by whatever name its config has it); None
    where it sets no limit."""
    config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        if limit := getattr(config, name, None):
            return limit
    return None


def require_positions(model: PreTrainedModel, length: int, what: str, remedy: str = "choose at most {limit}") -> None:
    """`ValueError` where a row of `length` tokens, which is `what`, is longer than the model's positions. `remedy` may
    name the `{limit}`."""
    limit = num_positions(model.config)
    if limit is not None and length > limit:
        raise ValueError(f"{what} exceeds the model's {limit} positions: {remedy.format(limit=limit)}")
