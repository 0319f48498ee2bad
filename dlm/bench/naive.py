"""The naive implementation, written without any part of this repository but the model.

Training: a dense mask over [noisy ; clean], logits of all 2L rows, cross-entropy on L. Decoding: a prefill, forwards of
one block whose keys and values are cut off again, and a forward to commit each finished block.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


def hf_mask(
    visible: Bool[Tensor, "Q K"],
    q: Int[Tensor, " Q"],
    k: Int[Tensor, " K"],
    layer_types: dict[str, int | None],
    implementation: str,
) -> Any:
    """The `attention_mask` of a Hugging Face forward, one per layer type. `q` and `k` are positions, for windows."""

    def build(window: int | None) -> Tensor:
        mask = visible if window is None else visible & ((q[:, None] - k).abs() < window)
        if implementation == "eager":  # it adds the mask to the scores
            return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
        return mask

    masks = {name: build(window)[None, None] for name, window in layer_types.items()}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def without_mask_token(logits: Float[Tensor, "B S V"], mask_id: int) -> Float[Tensor, "B S V"]:
    """The logits, with -inf for the mask token: it is never predicted."""
    logits = logits.float()
    logits[..., mask_id] = -torch.inf
    return logits


def diffusion_loss(
    model: PreTrainedModel,
    layer_types: dict[str, int | None],
    x0: Int[Tensor, "B L"],
    masked: Bool[Tensor, "B L"],
    weight: Float[Tensor, "B L"],
    mask_id: int,
    block_size: int,
    token_shift: bool,
) -> Float[Tensor, ""]:
    """Weighted cross-entropy of the masked tokens, per token of the batch."""
    length, implementation = x0.shape[1], model.config._attn_implementation
    xt = torch.where(masked, mask_id, x0)
    position = torch.arange(length, device=x0.device).repeat(2)
    block = position // block_size
    clean = torch.arange(2 * length, device=x0.device) >= length
    q_clean, k_clean, q_block, k_block = clean[:, None], clean[None], block[:, None], block[None]
    visible = ~q_clean & ~k_clean & (q_block == k_block)  # a noisy block sees itself,
    visible |= ~q_clean & k_clean & (k_block < q_block)  # and the clean blocks before it;
    visible |= q_clean & k_clean & (k_block <= q_block)  # a clean block sees itself and the clean blocks before it
    logits = model(
        input_ids=torch.cat([xt, x0], 1),
        position_ids=position.expand(len(x0), -1),
        attention_mask=hf_mask(visible, position, position, layer_types, implementation),
        use_cache=False,
    ).logits
    noisy, context = without_mask_token(logits, mask_id).chunk(2, 1)
    if token_shift:  # position i - 1 scores token i; a block's first token is scored from the clean stream
        first = (position[:length] % block_size == 0)[None, :, None]
        noisy = torch.where(first, context.roll(1, 1), noisy.roll(1, 1))
    # Not on [B V L], as is common: there a CPU sums over the vocabulary sequentially, an error of 2e-5 for 262k words.
    nll = F.cross_entropy(noisy.flatten(0, 1), x0.flatten(), reduction="none").view_as(x0)
    return (nll * weight * masked).sum() / x0.numel()


def ar_loss(model: PreTrainedModel, x0: Int[Tensor, "B L"]) -> Float[Tensor, ""]:
    """The parent's own training step: next-token cross-entropy, logits of all L rows."""
    logits = model(input_ids=x0, use_cache=False).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), x0[:, 1:].flatten())


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    layer_types: dict[str, int | None],
    prompt: Int[Tensor, "B P"],
    new_tokens: int,
    mask_id: int,
    block_size: int,
    tokens_per_step: int,
    token_shift: bool,
) -> Int[Tensor, "B T"]:
    """`new_tokens` tokens (T) after every prompt; both lengths are whole blocks. A block of n denoising steps costs n +
    1 forwards."""
    cache = DynamicCache()

    def forward(ids: Int[Tensor, "B S"], start: int) -> Float[Tensor, "B S V"]:
        q = torch.arange(start, start + ids.shape[1], device=ids.device)
        k = torch.arange(start + ids.shape[1], device=ids.device)
        visible = k // block_size <= q[:, None] // block_size
        mask = hf_mask(visible, q, k, layer_types, model.config._attn_implementation)
        out = model(
            ids, position_ids=q.expand(len(ids), -1), attention_mask=mask, past_key_values=cache, use_cache=True
        )
        return without_mask_token(out.logits, mask_id)

    x = prompt
    before = forward(prompt, 0)[:, -1:]
    for start in range(prompt.shape[1], prompt.shape[1] + new_tokens, block_size):
        block = torch.full((len(x), block_size), mask_id, device=x.device)
        while (block == mask_id).any():
            logits = forward(block, start)
            cache.crop(-block_size)
            if token_shift:
                logits = torch.cat([before, logits[:, :-1]], 1)
            block = commit(block, logits, mask_id, tokens_per_step, token_shift)
        before = forward(block, start)[:, -1:]
        x = torch.cat([x, block], 1)
    return x[:, prompt.shape[1] :]


def commit(
    block: Int[Tensor, "B K"], logits: Float[Tensor, "B K V"], mask_id: int, tokens_per_step: int, token_shift: bool
) -> Int[Tensor, "B K"]:
    """The block with its `tokens_per_step` most confident tokens filled in."""
    confidence, token = logits.softmax(-1).max(-1)
    is_open = block == mask_id
    # Stable: of equal confidences the leftmost comes first.
    order = confidence.masked_fill(~is_open, -1).argsort(dim=1, descending=True, stable=True)
    keep = torch.zeros_like(is_open).scatter(1, order[:, :tokens_per_step], True) & is_open
    if token_shift:  # if only the first token is left, its score is final: it depends on clean context only
        keep[:, 0] |= is_open[:, 0] & ~(is_open[:, 1:] & ~keep[:, 1:]).any(1)
    return torch.where(keep, token, block)
