"""The forward of a decoder's naive reference: one sequence, no cache, the attention mask written out pair by pair."""

import itertools

import torch
from common import MASK_ID


def scores(scorer, x, start, embeds=None):
    """{position: (token, probability)} of what can be predicted behind `start`, where the finished blocks end. `embeds`
    [L D] are read in place of the tokens."""
    n, size, shift = len(x), scorer.pattern.block_size, int(scorer.token_shift)
    clean = [scorer.pattern.clean_stream and i < start for i in range(n)]
    sees = torch.zeros(n, n, dtype=torch.bool)
    for i, j in itertools.product(range(n), range(n)):
        own, earlier = i // size == j // size, j // size < i // size
        sees[i, j] = own or (earlier and (clean[j] or not scorer.pattern.clean_stream))
    masks = {}
    for name, window in scorer.layer_types.items():
        near = (torch.arange(n)[:, None] - torch.arange(n)).abs() < (window or n)
        masks[name] = (sees & near)[None, None]
    mask = masks if len(masks) > 1 else next(iter(masks.values()))
    read = {"input_ids": torch.tensor([x])} if embeds is None else {"inputs_embeds": embeds[None]}
    with torch.no_grad():
        logits = scorer.model(attention_mask=mask, position_ids=torch.arange(n)[None], **read).logits[0]
    logits[:, MASK_ID] = -torch.inf
    probability, token = logits.softmax(-1).max(-1)
    waits = [i for i in range(start + 1, n) if shift and scorer.pattern.clean_stream and i % size == 0]
    return {i: (int(token[i - shift]), float(probability[i - shift])) for i in range(start, n) if i not in waits}
