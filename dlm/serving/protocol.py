"""What clients send: the bodies of the OpenAI API, as far as a diffusion model can answer them, and what only this
server has: `mode`, `threshold`, `template`.

A field that is not known, or a value that cannot be honoured, is refused by name: an answer that was made otherwise
than asked would look like one that was.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, field_validator, model_validator

from dlm.serving.modes import DIFFUSION

Number = Annotated[float, Field(allow_inf_nan=False)]
MAX_CHOICES, MAX_STOPS = 128, 16


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of bodies have. None: the server's own."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    temperature: Annotated[Number, Field(ge=0)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] = 1
    stop: str | list[str] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    # What only this server has.
    mode: str = DIFFUSION
    threshold: Annotated[Number, Field(ge=0)] | None = None
    # What changes nothing about an answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    # Accepted where they ask for what is the case anyway.
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @field_validator("frequency_penalty", "presence_penalty", mode="before")
    @classmethod
    def zero(cls, value: Any) -> Any:
        return 0 if value == 0 else value

    @field_validator("stop")
    @classmethod
    def listed(cls, value: str | list[str] | None) -> list[str]:
        stops = [value] if isinstance(value, str) else value or []
        if "" in stops or len(stops) > MAX_STOPS:
            raise ValueError(f"must be at most {MAX_STOPS} texts, none of them empty")
        return stops


def is_prompt(value: Any) -> bool:
    """Whether a value is one prompt: a text or token ids, at least one."""
    return isinstance(value, str) or (isinstance(value, list) and value != [] and all(type(n) is int for n in value))


class CompletionBody(Asked):
    """The body of /v1/completions: one prompt or several, texts or token ids."""

    prompt: Any  # a text, token ids, or a list of either
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None
    best_of: Literal[1] | None = None

    @field_validator("prompt")
    @classmethod
    def prompts(cls, value: Any) -> list[str | list[int]]:
        """A list of prompts, each a text or token ids."""
        prompts = [value] if is_prompt(value) else value
        if not isinstance(prompts, list) or not all(map(is_prompt, prompts)):
            raise ValueError("must be a text, token ids, or a list of either")
        if not 1 <= len(prompts) <= MAX_CHOICES:
            raise ValueError(f"has {len(prompts)} prompts, but there must be from 1 to {MAX_CHOICES}")
        return prompts


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    model_config = ConfigDict(extra="forbid")
    url: str
    detail: Literal["auto"] | None = None


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: str | None = None

    def plain(self) -> dict[str, Any]:
        """The role and the content: a text or, with pictures, parts as `dlm.serving.pictures` takes them."""
        parts = [] if isinstance(self.content, str) else self.content
        if any(isinstance(part, ImagePart) for part in parts):
            content = [
                {"type": "image", "image": part.image_url.url}
                if isinstance(part, ImagePart)
                else {"type": "text", "text": part.text}
                for part in parts
            ]
            return {"role": self.role, "content": content}
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class ChatBody(Asked):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: None = None
    template: Literal["auto", "chat", "plain", "raw"] | None = None


class TraceBody(CompletionBody):
    """The body of /dlm/trace: one prompt, or in its place the messages of a chat, whose every forward is told."""

    prompt: Any = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    n: Literal[1] = 1

    @field_validator("prompt")
    @classmethod
    def one(cls, value: list[str | list[int]]) -> list[str | list[int]]:
        if len(value) != 1:
            raise ValueError(f"has {len(value)} prompts, but a trace is of one")
        return value

    @model_validator(mode="after")
    def either(self) -> TraceBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("must have either a prompt or messages")
        return self
