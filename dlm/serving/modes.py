"""The ways in which one checkpoint answers, and the prompts that it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from dlm.config.build import make
from dlm.config.exported import ExportedFolder
from dlm.config.finished import FinishedRun
from dlm.data.packing import adds_bos
from dlm.data.pictures import processed
from dlm.decoding.ar import AR
from dlm.decoding.base import Decoder
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.fixed import Fixed
from dlm.decoding.self_speculative import SelfSpeculative
from dlm.serving.pictures import Shown, places_pictures, shown, shows_pictures
from dlm.types import Images
from dlm.watch.speaker import Speaker

DIFFUSION = "diffusion"
Message = Mapping[str, Any]  # its role and its content
Encoded = tuple[list[int], Images | None]  # the token ids of a prompt, and the images that they stand for


def modes(source: FinishedRun | ExportedFolder, decoding: dict[str, Any] | None, parent: bool) -> dict[str, Speaker]:
    """The modes of a run or an exported folder by name, `diffusion` first: by the decoder of the config `decoding`, by
    default its own. `ar` and `speculate` are its weights under causal attention, without and with the dLM's drafts;
    `parent` is the AR model that it was made of, which an exported folder does not have."""
    dlm, tokenizer = source.dlm, source.converted.tokenizer
    diffusion = make(decoding) if decoding else source.decoder
    diffusion.require(dlm.pattern)
    by_name = {DIFFUSION: diffusion, "ar": AR(), "speculate": SelfSpeculative()}
    processor = source.converted.processor
    speakers = {name: Speaker(name, dlm, tokenizer, decoder, processor) for name, decoder in by_name.items()}
    if parent and isinstance(source, FinishedRun):
        speakers["parent"] = Speaker("parent", source.ar, source.parent.tokenizer, Fixed(1), source.parent.processor)
    return speakers


def rule_of(
    decoder: Decoder, temperature: float | None = None, top_p: float | None = None, threshold: float | None = None
) -> CommitRule:
    """The rule of a decoder with other numbers; None: its own. Raises `ValueError` for values outside their range, and
    for a threshold where the rule has none."""
    rule = decoder.rule
    changed = decoder.sampling(
        rule.temperature if temperature is None else temperature, rule.top_p if top_p is None else top_p
    )
    if threshold is None:
        return changed.rule
    return changed.at(threshold).rule


def conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str) -> str:
    """The text of a conversation that an answer continues. `template`: `chat`, that of the tokenizer; `plain`, a line
    for each turn; `raw`, the contents alone; `auto`, the first of `chat` and `plain` that there is. Raises `ValueError`
    where the tokenizer has no template or its template refuses the messages."""
    return TEMPLATES[template if template != "auto" else "chat" if tokenizer.chat_template else "plain"](
        tokenizer, messages
    )


def by_chat_template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template: choose template=plain or template=raw")
    try:
        text = tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template raises errors of its own
        raise ValueError(f"the chat template refuses these messages: {error}") from error
    if lost := next((m["content"] for m in messages if m["content"].strip() not in text), None):
        raise ValueError(
            f"the chat template leaves out {lost!r}, since it takes contents in another form: choose template=plain or "
            "template=raw"
        )
    # Encoding adds it.
    return text.removeprefix(tokenizer.bos_token) if adds_bos(tokenizer) else text


def plainly(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    turns = [f"{message['role'].capitalize()}: {message['content']}\n" for message in messages]
    return "".join(turns) + "Assistant:"


def raw(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    return "".join(message["content"] for message in messages)


TEMPLATES: dict[str, Callable[[PreTrainedTokenizerBase, Sequence[Message]], str]] = {
    "chat": by_chat_template,
    "plain": plainly,
    "raw": raw,
}


def require_template(name: str) -> None:
    """Raises `ValueError` for a template that there is not."""
    if name not in ("auto", *TEMPLATES):
        raise ValueError(f"template {name!r} is unknown: choose auto, {', '.join(TEMPLATES)}")


PLAIN_STOP = "\nUser:"  # where a model writes the next turn of a plain conversation itself


def stops_of(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, ...]:
    """The texts that end an answer in a conversation, besides EOS."""
    return (PLAIN_STOP,) if template == "plain" or (template == "auto" and not tokenizer.chat_template) else ()


def prompt_of(speaker: Speaker, messages: Sequence[Message], template: str) -> tuple[str | Shown, tuple[str, ...]]:
    """The prompt of a conversation, whose contents are texts or parts with pictures, and the texts that end its answer
    besides EOS. A model that reads images lays out all its conversations by the template of its processor, so that
    turns before the first picture look as they do behind it. Raises `ValueError` as `conversation` and `shown`."""
    if places_pictures(speaker, template) or shows_pictures(messages):
        return shown(speaker, messages, template), ()
    return conversation(speaker.tokenizer, messages, template), stops_of(speaker.tokenizer, template)


def encoded(speaker: Speaker, prompt: str | list[int] | Shown, max_new_tokens: int) -> Encoded:
    """What a model is given of a prompt, which may be ids already. Raises `ValueError` if it cannot continue it."""
    if isinstance(prompt, Shown):
        ids, images = processed(speaker.processor, prompt.text, prompt.pictures)
        speaker.require_readable(ids, prompt.text, max_new_tokens)
        return ids, images
    if isinstance(prompt, str):
        return speaker.encode(prompt, max_new_tokens), None
    size = len(speaker.tokenizer)
    if wrong := [token for token in prompt if not 0 <= token < size]:
        raise ValueError(f"token {wrong[0]} of a prompt is not in the vocabulary of {size} tokens")
    return prompt, None
