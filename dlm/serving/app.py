"""The routes of the server: the OpenAI API, the traces of the page, and what a machine that runs servers asks."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from dlm.serving.answers import Answer, Growing, usage
from dlm.serving.batcher import Done, Final
from dlm.serving.guards import LOCAL, Guard, error_body, event, handle_errors, is_loopback, refusal, said_of, status_of
from dlm.serving.protocol import Asked, ChatBody, CompletionBody, TraceBody
from dlm.serving.service import Answering, Service
from dlm.watch.page import page
from dlm.watch.trace import Step, closing, opening

Choice = Callable[[int, str | None, str | None], dict[str, Any]]  # number, text, reason for its end → a choice


class Gone(Exception):
    """The client has hung up."""


class Reply:
    """The answer to one request in the form of the OpenAI API. `kind` is its `object`; `choice` makes its choices, and
    `chunk` those of its events."""

    def __init__(self, answering: Answering, asked: Asked, model: str, kind: str, choice: Choice, chunk: Choice):
        self.answering, self.asked, self.choice, self.chunk = answering, asked, choice, chunk
        self.answers: dict[int, Answer] = {}
        self.head = {
            "id": f"{'chatcmpl' if kind.startswith('chat') else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if asked.stream and kind.startswith("chat") else kind,
            "created": int(time.time()),
            "model": model,
            "seed": answering.seed,
        }

    def finish(self, index: int, done: Done) -> Answer:
        self.answers[index] = self.answering.finish(index, done)
        return self.answers[index]

    def usage(self) -> dict[str, Any]:
        """The cost of all choices; a prompt that has several is counted once."""
        prompts = self.answering.prompts[:: self.asked.n]
        return usage(prompts, [self.answers[index] for index in sorted(self.answers)])

    async def whole(self) -> dict[str, Any]:
        async for index, told in self.answering.events():
            if isinstance(told, Done):
                self.finish(index, told)
        found = sorted(self.answers.items())
        choices = [self.choice(index, answer.text, answer.finish_reason) for index, answer in found]
        return self.head | {"choices": choices, "usage": self.usage()}

    async def stream(self) -> AsyncIterator[str]:
        """Events with what is final of each choice."""
        growing = [Growing(self.answering.speaker.tokenizer, self.answering.stop.strings) for _ in self.answering.jobs]
        async for index, told in self.answering.events():
            if isinstance(told, Final) and (text := growing[index].more(told.tokens)):
                yield event(self.head | {"choices": [self.chunk(index, text, None)]})
            if isinstance(told, Done):
                answer = self.finish(index, told)
                if rest := growing[index].rest(answer.text):
                    yield event(self.head | {"choices": [self.chunk(index, rest, None)]})
                yield event(self.head | {"choices": [self.chunk(index, None, answer.finish_reason)]})
        if self.asked.stream_options and self.asked.stream_options.include_usage:
            yield event(self.head | {"choices": [], "usage": self.usage()})


def completion_choice(index: int, text: str | None, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text or "", "logprobs": None, "finish_reason": reason}


def chat_choice(index: int, text: str | None, reason: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


def chat_chunk(index: int, text: str | None, reason: str | None) -> dict[str, Any]:
    delta = {} if text is None else {"role": "assistant", "content": text}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


async def respond(request: Request, reply: Reply) -> Response:
    """The whole reply, or its events if the client asks for them. Who hangs up cancels it."""
    if reply.asked.stream:
        return streamed(request, reply.answering, reply.stream())
    listener = asyncio.create_task(listen(request, reply.answering))
    try:
        return JSONResponse(await reply.whole())
    except Gone:
        return Response(status_code=499)
    except Exception as error:  # of the worker, which has logged it
        return refusal(status_of(error), said_of(error))
    finally:
        listener.cancel()


async def listen(request: Request, answering: Answering) -> None:
    """Wait until the client hangs up, and give up then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    answering.give_up(Gone())


def streamed(request: Request, answering: Answering, events: AsyncIterator[str]) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        listener = asyncio.create_task(listen(request, answering))
        try:
            async for told in events:
                yield told
        except Gone:
            return
        except Exception as error:  # the status is sent already
            yield event(error_body(status_of(error), said_of(error)))
        finally:
            listener.cancel()
            answering.cancel()
        yield event("[DONE]")

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)


async def trace(answering: Answering) -> AsyncIterator[str]:
    """The trace of one answer, as `dlm.watch.trace` describes it: the events `opening`, `step` and `closing`."""
    speaker, (prompt,) = answering.speaker, answering.prompts
    begun = opening(speaker.name, speaker.tokenizer, prompt, speaker.denoiser.pattern, speaker.ends)
    yield event(asdict(begun), "opening")
    async for _, told in answering.events():
        if isinstance(told, Step):
            yield event(asdict(told), "step")
        if isinstance(told, Done):
            answer = answering.finish(0, told)
            cost = closing(answer.text, len(answer.generation.tokens), answer.generation.nfe, told.seconds)
            yield event(asdict(cost) | {"finish_reason": answer.finish_reason}, "closing")


def openai_routes(app: FastAPI, service: Service) -> None:
    created = int(time.time())

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        listed = [{"id": name, "object": "model", "created": created, "owned_by": "dlm"} for name in service.models]
        return {"object": "list", "data": listed}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        service.speaker(model, "diffusion")
        return {"id": model, "object": "model", "created": created, "owned_by": "dlm"}

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        answering = service.ask(body, body.prompt, body.max_tokens)
        name = body.model or service.name
        return await respond(
            request, Reply(answering, body, name, "text_completion", completion_choice, completion_choice)
        )

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        # In a thread: while pictures are opened, the others' answers go on.
        prompt, stops = await asyncio.to_thread(service.chat, body, body.messages, body.template)
        answering = service.ask(body, [prompt], body.max_completion_tokens or body.max_tokens, stops)
        name = body.model or service.name
        return await respond(request, Reply(answering, body, name, "chat.completion", chat_choice, chat_chunk))


def own_routes(app: FastAPI, service: Service) -> None:
    @app.post("/dlm/trace")
    async def traced(body: TraceBody, request: Request) -> Response:
        prompts, stops = body.prompt, ()
        if body.messages is not None:
            prompt, stops = await asyncio.to_thread(service.chat, body, body.messages)
            prompts = [prompt]
        answering = service.ask(body, prompts, body.max_tokens, stops, traced=True)
        return streamed(request, answering, trace(answering))

    @app.get("/dlm/info")
    async def info() -> dict[str, Any]:
        return {"model": service.name, "modes": service.settings(), "limits": asdict(service.limits)}

    @app.get("/", response_class=HTMLResponse)
    async def index() -> str:
        return page()

    @app.get("/health")
    async def health() -> Response:
        alive = service.batcher.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "the worker has ended"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def create_app(service: Service, key: str | None = None, host: str = "127.0.0.1") -> FastAPI:
    """The server of a service, which it closes when it ends. With a `key`, clients must send it. Without one, only
    names of this machine may address it, so that no page of the web can reach it under a name of its own."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="dlm", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    openai_routes(app, service)
    own_routes(app, service)
    handle_errors(app)
    paths = tuple(route.path for route in app.routes)
    hosts = LOCAL if key is None and is_loopback(host) else None
    guard = {"key": key, "hosts": hosts, "max_body": service.limits.body, "metrics": service.metrics, "paths": paths}
    app.add_middleware(Guard, **guard)
    return app
