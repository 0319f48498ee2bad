"""What the weights of a checkpoint have to be: complete, not quantised, finite."""

from __future__ import annotations

from transformers import PreTrainedModel


def require_plain_weights(model: PreTrainedModel, path: str, missing: list[str], gguf: bool) -> None:
    """Raises `ValueError` for a checkpoint that is quantised or lacks weights, which transformers would initialise
    randomly. A loaded GGUF file consists of plain floats, so its mark as quantised is removed."""
    if missing:
        raise ValueError(
            f"model.path {path!r} lacks {len(missing)} weights of a {type(model).__name__} ({', '.join(missing[:3])}, "
            "…), which would be random: name a complete causal LM"
        )
    quantisation = getattr(model.config, "quantization_config", None)
    if quantisation is None:
        return
    if not gguf:
        raise ValueError(f"model.path {path!r} is quantised, and cannot be trained: name the unquantised original")
    del model.config.quantization_config
    model.hf_quantizer = None  # otherwise the model could not be saved


def require_finite(model: PreTrainedModel, path: str, dtype: str) -> None:
    """Raises `ValueError` for weights with NaN or infinity, naming the first such tensor: no loss would be finite."""
    for name, weight in model.named_parameters():
        if num_bad := int((~weight.isfinite()).sum()):
            raise ValueError(
                f"model.path {path!r}: {num_bad} of {weight.numel()} values of its tensor {name} are not finite in "
                f"{dtype}. Load it in a wider model.dtype, restore it from its source, or name another model"
            )
