"""Which masks the layers of a model take."""

from __future__ import annotations

from transformers import PreTrainedModel


def layer_types(model: PreTrainedModel) -> dict[str, int | None]:
    """The masks that the model's forward takes: {layer type: sliding window in tokens, or None}.

    Models with layers of several types take a dict of masks; models whose layers are all alike take one mask, which
    includes the window. Raises `ValueError` for layers that are not softmax attention.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    type_of_each_layer = getattr(config, "layer_types", None)
    default = "sliding_attention" if window else "full_attention"
    types = set(type_of_each_layer) if type_of_each_layer else {default}
    unknown = types - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(
            f"{config.model_type} cannot be converted: it has layers of type {', '.join(sorted(unknown))}; only "
            "softmax attention (full or sliding-window) takes any mask"
        )
    if "sliding_attention" in types and not window:
        raise ValueError(f"{config.model_type} has sliding_attention layers but no sliding_window in its config")
    return {name: window if name == "sliding_attention" else None for name in sorted(types)}
