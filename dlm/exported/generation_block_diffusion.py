"""What `generate` of an exported model is asked for: its options, prompts without padding, the rule that commits
tokens, the canvas that a text is written on, and where it ends. It depends on torch and transformers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from .pictures_block_diffusion import Pictures

# Options that this decoding supports.
SUPPORTED = {"max_new_tokens", "max_length", "do_sample", "temperature", "top_p", "top_k", "eos_token_id"}
SUPPORTED |= {"pad_token_id", "stop_strings", "return_dict_in_generate", "threshold", "tokens_per_step"}
SUPPORTED |= {"num_return_sequences", "streamer"}
# Options of transformers that change no token here: the cache is always used, there are no beams and no assistant.
IGNORED = {"use_cache", "cache_implementation", "cache_config", "max_cache_len", "disable_compile", "compile_config"}
IGNORED |= {"bos_token_id", "decoder_start_token_id", "token_type_ids", "early_stopping", "length_penalty"}
IGNORED |= {"renormalize_logits", "remove_invalid_values", "low_memory", "synced_gpus", "is_assistant"}
IGNORED |= {"num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"}
IGNORED |= {"assistant_lookbehind", "target_lookbehind"}
IGNORED |= {"transformers_version", "_from_model_config", "trust_remote_code"}
# Options without effect at the value 1.
NEUTRAL_AT_1 = {"num_beams", "num_beam_groups", "repetition_penalty", "guidance_scale"}
NEUTRAL_AT_1 |= {"encoder_repetition_penalty", "typical_p"}
# Options without effect in greedy decoding.
SAMPLING = {"min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}


@dataclass
class CommitRule:
    """Commits the predictions whose probability exceeds `threshold`, or the `tokens_per_step` most probable ones."""

    threshold: float | None
    tokens_per_step: int | None
    temperature: float
    top_p: float
    eos_ids: Tensor  # [E]
    generator: torch.Generator | None
    top_k: int = 0  # 0: all

    def __post_init__(self):
        if (self.threshold is None) == (self.tokens_per_step is None):
            raise ValueError("give either threshold or tokens_per_step")
        if (self.threshold or 0) < 0 or (self.tokens_per_step is not None and self.tokens_per_step < 1):
            raise ValueError(f"threshold {self.threshold} must be >= 0, tokens_per_step {self.tokens_per_step} >= 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature} must be >= 0 and top_p {self.top_p} lie in (0, 1]")

    def sample(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Sample tokens [K] from logits [K, V]. Also returns their probabilities [K] at temperature 1."""
        probability = logits.softmax(-1, dtype=torch.float32)
        if self.temperature == 0:
            token = logits.argmax(-1)
            return token, probability.gather(-1, token[:, None])[:, 0]
        scaled = logits.float() / self.temperature
        if self.top_k:
            scaled = TopKLogitsWarper(self.top_k)(None, scaled)
        if self.top_p < 1:
            scaled = TopPLogitsWarper(self.top_p)(None, scaled)
        token = torch.multinomial(scaled.softmax(-1), 1, generator=self.generator)
        return token[:, 0], probability.gather(-1, token)[:, 0]

    def __call__(self, token: Tensor, confidence: Tensor, masked: Tensor, token_shift: bool) -> tuple[Tensor, Tensor]:
        """The tokens of a block [K] and which of them to commit now [K]: nothing behind a predicted EOS before it. A
        committed EOS fills the masked positions to its right."""
        is_eos = torch.isin(token, self.eos_ids)
        ends = (is_eos & masked).int()
        candidates = masked & (ends.cumsum(0) - ends == 0)
        rank = confidence.masked_fill(~candidates, -torch.inf)
        commit = torch.arange(len(token), device=token.device) == rank.argmax()
        if self.tokens_per_step is not None:
            commit[rank.argsort(descending=True, stable=True)[: self.tokens_per_step]] = True  # ties as in argmax
        else:
            commit |= confidence > self.threshold
        commit &= candidates
        tail = ((commit & is_eos).cumsum(0) > 0) & masked & ~commit
        if token_shift and not (masked & ~commit & ~tail)[1:].any():
            commit[0] = masked[0]  # its score depends on the clean context only, so waiting cannot change it
            tail = ((commit & is_eos).cumsum(0) > 0) & masked & ~commit
        return torch.where(tail, self.eos_ids[:1], token) if len(self.eos_ids) else token, commit | tail


@dataclass
class StopStrings:
    """Strings that end a text. Raises `ValueError` for an empty string, or without a tokenizer."""

    strings: str | list[str] | None
    tokenizer: PreTrainedTokenizerBase | None

    def __post_init__(self):
        self.strings = [self.strings] if isinstance(self.strings, str) else self.strings or []
        if self.strings and self.tokenizer is None:
            raise ValueError("stop_strings are found in the text: give tokenizer= as well")
        if "" in self.strings:
            raise ValueError("a stop string must not be empty: every text holds it")

    def occur_in(self, tokens: Tensor) -> bool:
        text = self.tokenizer.decode(tokens)
        return any(string in text for string in self.strings)

    def __call__(self, tokens: Tensor) -> int | None:
        """The number of `tokens` [N] up to the end of the first stop string; None if there is none."""
        if not self.strings or not self.occur_in(tokens):
            return None
        return next(n for n in range(1, len(tokens) + 1) if self.occur_in(tokens[:n]))


def supported_options(options: dict[str, Any], configs: tuple[GenerationConfig | None, ...]) -> dict[str, Any]:
    """The supported options of a call, with defaults from `configs`, of which a later one overrides an earlier one;
    `temperature` is always set. Raises `ValueError` for an unsupported option that would change the tokens."""
    defaults = {name: value for config in configs if config for name, value in config.to_diff_dict().items()}
    if options.get("temperature") is not None:
        defaults.pop("do_sample", None)  # a temperature decides by itself whether to sample
    options = defaults | options
    greedy = options.get("do_sample") is False or not (options.get("do_sample") or options.get("temperature"))
    for name, value in options.items():
        unset = value is None or (not isinstance(value, Tensor) and not value) or (name in NEUTRAL_AT_1 and value == 1)
        if not (name in SUPPORTED | IGNORED or unset or (greedy and name in SAMPLING)):
            raise ValueError(f"{name}={value!r} is not to be had in block diffusion: leave it out")
    supported = {name: value for name, value in options.items() if name in SUPPORTED and value is not None}
    if greedy and supported.get("num_return_sequences", 1) > 1:
        raise ValueError(
            f"num_return_sequences={supported['num_return_sequences']} would be equal rows, since decoding is greedy: "
            "give do_sample=True, or leave it out"
        )
    temperature = supported.get("temperature", 0.0 if greedy else 1.0)
    return supported | {"temperature": 0.0 if greedy and temperature >= 0 else temperature}


def without_padding(input_ids: Tensor, attention_mask: Tensor | None, pad: int | None, eos_ids: list[int]) -> Tensor:
    """Which of the `input_ids` [B, P] are no padding [B, P]. Without an `attention_mask` [B, P], runs of the token
    `pad` at the ends of a row are. Raises `ValueError` for a mask of another shape or with holes, and where `pad` also
    ends a text, so that such a run may be either."""
    if attention_mask is None:
        is_pad = torch.zeros_like(input_ids) if pad is None else (input_ids == pad).long()
        kept = ((1 - is_pad).cumsum(1) > 0) & ((1 - is_pad).flip(1).cumsum(1) > 0).flip(1)
        if len(input_ids) > 1 and pad in eos_ids and not kept.all():
            raise ValueError(f"pad_token_id {pad} is also an EOS, so padding shows only in attention_mask=: give it")
        if len(input_ids) == 1 and pad in eos_ids:
            kept = torch.ones_like(kept)
    elif attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {list(attention_mask.shape)} and input_ids {list(input_ids.shape)}: give one "
            "entry per token, 0 at padding (a mask of pairs is the model's own)"
        )
    else:
        kept = attention_mask.to(input_ids.device).bool()
        if (kept.long().diff(dim=1) == 1).sum(1).add(kept[:, 0]).max() > 1:
            raise ValueError("attention_mask has a hole: only padding before and after a prompt may be 0")
    return kept.bool()


def rows_of(values: Tensor, kept: Tensor) -> list[Tensor]:
    """The rows of `values` [B, P] as far as they are `kept` [B, P]."""
    return [row[keep] for row, keep in zip(values, kept, strict=True)]


def require_one_row(streamer: BaseStreamer | None, num_rows: int) -> None:
    """Raises `ValueError` for a streamer of several rows."""
    if streamer is not None and num_rows > 1:
        raise ValueError(f"a streamer shows one text, and there are {num_rows}: give one prompt, to continue once")


def to_grid(given: int, config: PreTrainedConfig) -> int:
    """How far the places of a text with a prompt of `given` tokens are moved so that blocks begin at multiples of their
    size: blocks begin with the text, or (`block_anchor` "prompt") behind its prompt. A first token alone is none."""
    return -given * (config.block_anchor == "prompt" and given > 1) % config.block_size


def whole_blocks(given: int, new: int, config: PreTrainedConfig) -> int:
    """The places of a prompt of `given` tokens and of `new` ones, up to the end of a block, as in training."""
    moved = to_grid(given, config)
    return -(-(given + new + moved) // config.block_size) * config.block_size - moved


class Canvas:
    """A text that is being written, with K places in a block: the tokens `x` [L] of all places, and which of them are
    `masked` [L + 1], where the last entry is a sentinel. The current block begins at `start`; the places before
    `written` are in the `cache`. `token` and `confidence` [K] are the last predictions in the current block, and `nfe`
    counts forwards. `span` [L] numbers the runs of image tokens that see one another both ways, and is -1 elsewhere;
    None: there are none."""

    def __init__(self, prompt: Tensor, max_new_tokens: int, config: PreTrainedConfig, pictures: Pictures | None):
        self.given, self.size, self.pictures = len(prompt), config.block_size, pictures
        self.to_grid = to_grid(self.given, config)
        self.length = whole_blocks(self.given, max_new_tokens, config)
        self.x = torch.full((self.length,), config.mask_token_id, device=prompt.device)
        self.x[: self.given] = prompt
        self.masked = torch.arange(self.length + 1, device=prompt.device) >= self.given
        self.start, self.written, self.nfe = self.block_of(self.given) * self.size - self.to_grid, 0, 0
        self.token = torch.zeros(self.size, dtype=torch.long, device=prompt.device)
        self.confidence = torch.zeros(self.size, device=prompt.device)
        self.cache = DynamicCache() if config.cacheable else None
        both_ways = pictures is not None and config.clean_context
        self.span = pictures.spans(self.start, self.length) if both_ways else None

    def block_of(self, place: int | Tensor) -> int | Tensor:
        """The block of a place."""
        return (place + self.to_grid) // self.size

    @property
    def block(self) -> slice:
        """The places of the current block."""
        return slice(self.start, self.start + self.size)

    @property
    def block_done(self) -> bool:
        """Whether no place of the current block is masked."""
        return not self.masked[self.block].any()

    @property
    def new(self) -> Tensor:
        """The tokens [N] behind the prompt, before the first masked place."""
        return self.x[self.given : int(self.masked.int().argmax())]


@dataclass
class Task:
    """How texts are to be continued: by at most `max_new_tokens`, which a `rule` commits, up to a `stop`. A `streamer`
    is shown the tokens."""

    max_new_tokens: int
    rule: CommitRule
    stop: StopStrings
    streamer: BaseStreamer | None

    def ending(self, text: Canvas) -> tuple[Tensor, bool]:
        """The new tokens [N] of a text up to EOS or a stop string, and whether it has ended."""
        new = text.new[: self.max_new_tokens]
        is_eos = torch.isin(new, self.rule.eos_ids)
        ended = bool(is_eos.any()) or len(new) == self.max_new_tokens
        if is_eos.any():
            new = new[: int(is_eos.int().argmax()) + 1]
        until = self.stop(new) if ended or text.block_done else None
        return new[:until], ended or until is not None
