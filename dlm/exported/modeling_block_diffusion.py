"""A language model that decodes by block diffusion. It needs torch and transformers alone.

The weights and the layers are those of the parent class; `generate` is what differs. Blocks of `config.block_size`
tokens are finished from left to right. Every forward predicts all masked tokens of the current block and commits those
that are confident enough, at least one; it also writes the tokens that were finished before it to the key-value cache,
so the number of forwards (NFE) is the number of denoising steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedTokenizerBase, TopPLogitsWarper
from transformers import Qwen3ForCausalLM as Parent
from transformers.utils import ModelOutput


@dataclass
class BlockDiffusionOutput(ModelOutput):
    """`sequences` [B, T]: the prompts and what they gave, padded on the right. `nfe` [B]: the forwards of each."""

    sequences: Tensor | None = None
    nfe: Tensor | None = None


@dataclass
class CommitRule:
    """Which predictions are kept: those whose probability exceeds `threshold`, or the `tokens_per_step` best."""

    threshold: float | None
    tokens_per_step: int | None
    temperature: float
    top_p: float
    eos_ids: Tensor  # [E]
    generator: torch.Generator | None

    def __post_init__(self):
        if (self.threshold is None) == (self.tokens_per_step is None):
            raise ValueError("give either threshold or tokens_per_step")
        if (self.threshold or 0) < 0 or (self.tokens_per_step is not None and self.tokens_per_step < 1):
            raise ValueError(f"threshold {self.threshold} must be >= 0, tokens_per_step {self.tokens_per_step} >= 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature} must be >= 0 and top_p {self.top_p} lie in (0, 1]")

    def sample(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """A token for each of [K, V] logits, and its probability (at temperature 1)."""
        probability = logits.softmax(-1, dtype=torch.float32)
        if self.temperature == 0:
            token = logits.argmax(-1)
            return token, probability.gather(-1, token[:, None])[:, 0]
        scaled = logits.float() / self.temperature
        if self.top_p < 1:
            scaled = TopPLogitsWarper(self.top_p)(None, scaled)
        token = torch.multinomial(scaled.softmax(-1), 1, generator=self.generator)
        return token[:, 0], probability.gather(-1, token)[:, 0]

    def __call__(self, token: Tensor, confidence: Tensor, masked: Tensor, token_shift: bool) -> tuple[Tensor, Tensor]:
        """The tokens of a block [K] and which of them to commit now. EOS comes behind every other token, the leftmost
        first, and fills what is to its right."""
        is_eos = torch.isin(token, self.eos_ids)
        offset = torch.arange(len(token), device=token.device)
        rank = torch.where(is_eos, -1 - offset / len(token), confidence).masked_fill(~masked, -torch.inf)
        keep = offset == rank.argmax()
        if self.tokens_per_step is not None:
            keep[rank.argsort(descending=True, stable=True)[: self.tokens_per_step]] = True  # ties as in argmax
        else:
            keep |= confidence > self.threshold
        keep &= masked
        if token_shift and not (masked & ~keep)[1:].any():
            keep[0] = masked[0]  # alone, a first token has its final score: the clean context alone gave it
        tail = ((keep & is_eos).cumsum(0) > 0) & masked & ~keep
        return torch.where(tail, self.eos_ids[:1], token) if len(self.eos_ids) else token, keep | tail


@dataclass
class StopStrings:
    """Where a text ends because of what it says."""

    strings: list[str]
    tokenizer: PreTrainedTokenizerBase | None

    def __post_init__(self):
        if self.strings and self.tokenizer is None:
            raise ValueError("stop_strings are found in the text: give tokenizer= as well")
        if "" in self.strings:
            raise ValueError("a stop string must not be empty: every text holds it")

    def found(self, tokens: Tensor) -> bool:
        text = self.tokenizer.decode(tokens)
        return any(string in text for string in self.strings)

    def __call__(self, tokens: Tensor) -> int | None:
        """The number of `tokens` [N] that the first stop string ends at; None where there is none."""
        if not self.strings or not self.found(tokens):
            return None
        return next(n for n in range(1, len(tokens) + 1) if self.found(tokens[:n]))


class BlockDiffusionForCausalLM(Parent):
    """The parent with the attention and the decoding of the diffusion model that it was converted to."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 256,
        threshold: float | None = None,
        tokens_per_step: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        eos_token_id: int | list[int] | None = None,
        stop_strings: str | list[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        generator: torch.Generator | None = None,
        return_dict_in_generate: bool = False,
    ) -> Tensor | BlockDiffusionOutput:
        """Continue every row of `input_ids` [B, P] (padding is where `attention_mask` is 0), one after the other.

        By default the commit rule is the one in the config and decoding is greedy. `stop_strings` are looked for with
        `tokenizer` at the end of each block. Returns [B, T] token ids, EOS or the stop string included; with
        `return_dict_in_generate` also the forwards they took.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens {max_new_tokens} must be at least 1")
        if self.config._attn_implementation not in ("sdpa", "eager"):
            raise ValueError(f"attn_implementation {self.config._attn_implementation!r} cannot be used: sdpa or eager")
        if threshold is None and tokens_per_step is None:
            threshold, tokens_per_step = self.config.threshold, self.config.tokens_per_step
        eos = self.generation_config.eos_token_id if eos_token_id is None else eos_token_id
        eos_ids = torch.tensor([] if eos is None else eos, dtype=torch.long, device=self.device).flatten()
        rule = CommitRule(threshold, tokens_per_step, temperature, top_p, eos_ids, generator)
        stop = StopStrings([stop_strings] if isinstance(stop_strings, str) else stop_strings or [], tokenizer)
        input_ids = input_ids.to(self.device)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(self.device)
        prompts = [ids[keep.bool()] for ids, keep in zip(input_ids, real, strict=True)]
        if any(self.config.mask_token_id in prompt for prompt in prompts):
            raise ValueError(f"input_ids hold the mask token (id {self.config.mask_token_id}): it stands for no text")
        made = [self.continue_one(prompt, max_new_tokens, rule, stop) for prompt in prompts]
        pad = next(p for p in (self.generation_config.pad_token_id, *eos_ids.tolist(), 0) if p is not None)
        sequences = torch.cat([input_ids, pad_sequence([new for new, _ in made], True, pad)], 1)
        nfe = torch.tensor([n for _, n in made], device=self.device)
        return BlockDiffusionOutput(sequences=sequences, nfe=nfe) if return_dict_in_generate else sequences

    def continue_one(
        self, prompt: Tensor, max_new_tokens: int, rule: CommitRule, stop: StopStrings
    ) -> tuple[Tensor, int]:
        """The new tokens of one prompt [P] and the forwards they took."""
        config, size, begin = self.config, self.config.block_size, len(prompt)
        shift = int(config.token_shift)
        if shift and not begin:
            raise ValueError("an empty prompt cannot be continued with the token shift: begin it with a BOS token")
        length = -(-(begin + max_new_tokens) // size) * size  # whole blocks, as in training
        x = torch.full((length,), config.mask_token_id, device=self.device)
        x[:begin] = prompt
        masked = torch.arange(length + 1, device=self.device) >= begin  # the last one is a sentinel
        start, written, nfe = begin // size * size, 0, 0
        token = torch.zeros(size, dtype=torch.long, device=self.device)
        confidence = torch.zeros(size, device=self.device)
        cache = DynamicCache() if config.cacheable else None
        while True:
            end = start + size * config.noisy_stream if config.cacheable else length
            block = slice(start, start + size)
            scoring = torch.arange(start, start + size, device=self.device) - shift
            # The first token of a block is scored once, when the token before it is written.
            asked = masked[block] & (scoring >= written)
            logits = self.score(x[written:end], written, scoring[asked] - written, cache)
            nfe += 1
            token[asked], confidence[asked] = rule.sample(logits)
            new, keep = rule(token, confidence, masked[block], config.token_shift)
            x[block] = torch.where(keep, new, x[block])
            masked[block] &= ~keep
            if cache is not None:
                written = start
                if end > start:  # what is not finished leaves the cache
                    cache.crop(start - end)
            filled = int(masked.int().argmax())
            new = x[begin:filled][:max_new_tokens]
            is_eos = torch.isin(new, rule.eos_ids)
            ended, block_done = bool(is_eos.any()) or len(new) == max_new_tokens, filled >= start + size
            if is_eos.any():
                new = new[: int(is_eos.int().argmax()) + 1]
            until = stop(new) if ended or block_done else None
            if ended or until is not None:
                return new[:until], nfe
            start += size * block_done

    def score(self, ids: Tensor, offset: int, rows: Tensor, cache: DynamicCache | None) -> Tensor:
        """The logits [N, V] of `rows` in one forward of `ids`, which begin at position `offset`; the mask token is
        never predicted."""
        k = torch.arange(offset + len(ids), device=self.device)
        q = k[offset:]
        masks = {name: self.mask(q[:, None], k, window) for name, window in self.config.attention_windows.items()}
        logits = (
            self(
                input_ids=ids[None],
                position_ids=q[None],
                attention_mask=masks if len(masks) > 1 else masks.popitem()[1],
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=rows,
            )
            .logits[0]
            .float()
        )
        logits[:, self.config.mask_token_id] = -torch.inf
        return logits

    def mask(self, q: Tensor, k: Tensor, window: int | None) -> Tensor:
        """What position `q` sees of `k`, to be added to the scores [1, 1, Q, K]: its own and earlier blocks, or
        everything where nothing is cached; with a sliding `window`, nothing that far away in either direction."""
        size = self.config.block_size
        visible = k // size <= q // size if self.config.cacheable else (q >= 0) & (k >= 0)
        if window is not None:
            visible = visible & ((q - k).abs() < window)
        return torch.zeros(visible.shape, dtype=self.dtype, device=q.device).masked_fill(
            ~visible, torch.finfo(self.dtype).min
        )[None, None]
