"""A language model that decodes by block diffusion. It depends on torch and transformers only.

The weights and the layers are those of the parent class; only `generate` differs. Blocks of `config.block_size` tokens
begin with the text, or behind its prompt (`config.block_anchor`), and are finished from left to right. Every forward
predicts all masked tokens of the current block and commits the confident ones, at least one. The same forward writes
the previously finished tokens to the key-value cache, so the number of forwards (NFE) is the number of denoising steps.
The images of a prompt are read once, before the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers import Qwen3ForCausalLM as Parent
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.utils import ModelOutput

from .configuration_block_diffusion import BlockDiffusionConfig, ParentConfig
from .generation_block_diffusion import (
    Canvas,
    CommitRule,
    StopStrings,
    Task,
    require_one_row,
    rows_of,
    supported_options,
    whole_blocks,
    without_padding,
)
from .pictures_block_diffusion import Pictures, idle, image_arguments, pictures_of_prompts, reads_images

# transformers looks up how to rename and merge the weights of a checkpoint by the class or the type of the model.
for name in (Parent.__name__, ParentConfig.model_type):
    if (mapping := get_checkpoint_conversion_mapping(name)) is not None:
        register_checkpoint_conversion_mapping(BlockDiffusionConfig.model_type, mapping, overwrite=True)
        break


@dataclass
class BlockDiffusionOutput(ModelOutput):
    """`sequences` [B, T]: the prompts and their continuations, padded on the right. `nfe` [B]: forwards per row."""

    sequences: Tensor | None = None
    nfe: Tensor | None = None


class BlockDiffusionForCausalLM(Parent):
    """The parent's layers with the attention mask and the decoding of the converted diffusion model."""

    config_class = BlockDiffusionConfig

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        max_new_tokens: int | None = None,
        *,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Tensor | BlockDiffusionOutput:
        """Continue every row of `input_ids` (or `inputs`) [B, P], one after the other, by at most `max_new_tokens`
        (default 256) or up to `max_length`. `attention_mask` [B, P] is 0 at padding; without one, runs of
        `pad_token_id` at the ends of a row are padding.

        The commit rule is that of the config unless `threshold` or `tokens_per_step` is given. Decoding is greedy
        unless `temperature` or `do_sample` requests sampling (with `top_p`, `top_k` and `generator`), which may make
        `num_return_sequences` of every prompt. `eos_token_id`, one or several, or one of `stop_strings`, searched with
        `tokenizer` at the end of each block, ends a text; `pad_token_id` pads shorter rows. A `streamer` is given the
        prompt and then the tokens of every finished block. A `generation_config` may hold all of these. A model that
        reads images also takes what its processor returns for them, `pixel_values` and the like.

        Returns token ids [B * num_return_sequences, T], including EOS or the stop string; with
        `return_dict_in_generate` also the forwards per row. Raises `ValueError` for any other option that would change
        the tokens.
        """
        input_ids = self.tokens(input_ids, inputs)
        arguments = image_arguments(self, options)
        options |= {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        options = supported_options(options, (self.generation_config, generation_config))
        rule, stop = self.commit_rule(options, generator), StopStrings(options.get("stop_strings"), tokenizer)
        kept = without_padding(input_ids, attention_mask, options.get("pad_token_id"), rule.eos_ids.tolist())
        prompts = self.prompts(input_ids, kept)
        copies, streamer = options.get("num_return_sequences", 1), options.get("streamer")
        task = Task(self.num_new_tokens(options, input_ids.shape[1], prompts), rule, stop, streamer)
        require_one_row(streamer, copies * len(prompts))
        pictured = zip(prompts, pictures_of_prompts(self, prompts, kept, arguments), strict=True)
        outputs = [self.continue_one(*one, task) for one in pictured for _ in range(copies)]
        return self.output(input_ids.repeat_interleave(copies, 0), outputs, rule, options)

    def tokens(self, input_ids: Tensor | None, inputs: Tensor | None) -> Tensor:
        """The tokens of a call [B, P], on the device of the model. Raises `ValueError` if they are not given once, and
        for an attention that takes no mask."""
        if (input_ids is None) == (inputs is None):
            raise ValueError("give the prompts as input_ids, or as inputs, [B, P]")
        if (implementation := self.config.get_text_config()._attn_implementation) not in ("sdpa", "eager"):
            raise ValueError(f"attn_implementation {implementation!r} cannot be used: sdpa or eager")
        return (inputs if input_ids is None else input_ids).to(self.device)

    def commit_rule(self, options: dict[str, Any], generator: torch.Generator | None) -> CommitRule:
        """The requested commit rule, by default that of the config."""
        threshold, number = options.get("threshold"), options.get("tokens_per_step")
        if threshold is None and number is None:
            threshold, number = self.config.threshold, self.config.tokens_per_step
        eos_ids = torch.tensor(options.get("eos_token_id", []), dtype=torch.long, device=self.device).flatten()
        sampling = options["temperature"], options.get("top_p", 1.0)
        return CommitRule(threshold, number, *sampling, eos_ids, generator, options.get("top_k", 0))

    def prompts(self, input_ids: Tensor, kept: Tensor) -> list[Tensor]:
        """The `input_ids` [B, P] that are `kept` [B, P], row by row. Raises `ValueError` for a mask token, and for an
        empty prompt that cannot be continued."""
        prompts = rows_of(input_ids, kept)
        if any(self.config.mask_token_id in prompt for prompt in prompts):
            raise ValueError(f"input_ids hold the mask token (id {self.config.mask_token_id}): it stands for no text")
        if self.config.token_shift and not all(map(len, prompts)):
            raise ValueError("an empty prompt cannot be continued with the token shift: begin it with a BOS token")
        return prompts

    def num_new_tokens(self, options: dict[str, Any], columns: int, prompts: list[Tensor]) -> int:
        """The maximal number of new tokens, given the prompts and their padded length (`columns`). Raises `ValueError`
        if it is below 1 or the last block of a prompt exceeds the model's positions."""
        new = options.get("max_new_tokens", options["max_length"] - columns if "max_length" in options else 256)
        if new < 1:
            raise ValueError(f"max_new_tokens {new} must be at least 1 (max_length counts the prompt of {columns} too)")
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        total, given = max((whole_blocks(len(prompt), new, self.config), len(prompt)) for prompt in prompts)
        if limit is not None and total > limit:
            raise ValueError(
                f"a prompt of {given} and max_new_tokens {new} need {total} positions in whole blocks, and the model "
                f"has {limit}: shorten the prompt or lower max_new_tokens"
            )
        return new

    def continue_one(self, prompt: Tensor, pictures: Pictures | None, task: Task) -> tuple[Tensor, int]:
        """Continue one prompt [P] with its `pictures`. Returns the new tokens [N] and the number of forwards. The
        streamer gets the prompt, and the new tokens of every block when it is finished: none is ever taken back."""
        text, ended, shown = Canvas(prompt, task.max_new_tokens, self.config, pictures), False, 0
        if task.streamer is not None:
            task.streamer.put(prompt.cpu())
        while not ended:
            self.step(text, task.rule)
            new, ended = task.ending(text)
            if task.streamer is not None and (ended or text.block_done):
                task.streamer.put(new[shown:].cpu())
                shown = len(new)
            text.start += text.size * text.block_done
        if task.streamer is not None:
            task.streamer.end()
        return new, text.nfe

    def step(self, text: Canvas, rule: CommitRule) -> None:
        """Run one forward of a text, which also writes what is before its current block to the cache, and commit
        predictions by the rule."""
        config, block = self.config, text.block
        whole = config.whole_canvas and not config.cacheable
        end = text.length if whole else text.start + text.size * config.noisy_stream
        # The rows that predict the block. With the token shift, the first token of a block is scored once, when the
        # token before it is written.
        reads = torch.arange(block.start, block.stop, device=self.device) - int(config.token_shift)
        scored = text.masked[block] & (reads >= text.written)
        logits = self.score(text, end, reads[scored] - text.written)
        text.nfe += 1
        text.token[scored], text.confidence[scored] = rule.sample(logits)
        predicted, commit = rule(text.token, text.confidence, text.masked[block], config.token_shift)
        text.x[block] = torch.where(commit, predicted, text.x[block])
        text.masked[block] &= ~commit
        if text.cache is not None:
            text.written = text.start
            if end > text.start:  # the cache keeps finished tokens only
                text.cache.crop(text.start - end)

    def score(self, text: Canvas, end: int, rows: Tensor) -> Tensor:
        """Run one forward of the places of a text that are not in the cache, up to `end`. Returns the logits [N, V] of
        `rows` [N] of these, in which the mask token has probability 0."""
        ids, k = text.x[text.written : end], torch.arange(end, device=self.device)
        q = k[text.written :]
        masks = {name: self.mask(text, q[:, None], k, window) for name, window in self.config.attention_windows.items()}
        reads = {"input_ids": ids[None], "position_ids": q[None]}
        hidden = self.get_decoder()(
            **reads if text.pictures is None else text.pictures.reads(self, ids, q),
            attention_mask=masks if len(masks) > 1 else masks.popitem()[1],
            past_key_values=text.cache,
            use_cache=text.cache is not None,
        ).last_hidden_state
        with idle(self.base_model if reads_images(self) else self.get_decoder()):  # the head alone
            logits = self(inputs_embeds=hidden[:, rows], use_cache=False).logits[0].float()
        logits[:, self.config.mask_token_id] = -torch.inf
        return logits

    def mask(self, text: Canvas, q: Tensor, k: Tensor, window: int | None) -> Tensor:
        """The additive attention mask [1, 1, Q, K] of places `q` [Q, 1] and `k` [K] of a text: a place sees its own and
        earlier blocks and its span, or everything if nothing is cached; with a sliding `window`, only places nearer
        than it."""
        visible = text.block_of(k) <= text.block_of(q) if self.config.cacheable else (q >= 0) & (k >= 0)
        if (span := text.span) is not None:
            visible = visible | ((span[q] == span[k]) & (span[q] >= 0))
        if window is not None:
            visible = visible & ((q - k).abs() < window)
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=q.device)
        return mask.masked_fill(~visible, torch.finfo(self.dtype).min)[None, None]

    def output(
        self, input_ids: Tensor, outputs: list[tuple[Tensor, int]], rule: CommitRule, options: dict[str, Any]
    ) -> Tensor | BlockDiffusionOutput:
        """What `generate` returns for prompts [B, P], given the new tokens and the forwards of each."""
        pad = next(p for p in (options.get("pad_token_id"), *rule.eos_ids.tolist(), 0) if p is not None)
        sequences = torch.cat([input_ids, pad_sequence([tokens for tokens, _ in outputs], True, pad)], 1)
        nfe = torch.tensor([nfe for _, nfe in outputs], device=self.device)
        output = BlockDiffusionOutput(sequences=sequences, nfe=nfe)
        return output if options.get("return_dict_in_generate") else sequences
