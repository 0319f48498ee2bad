"""What stands before the routes: limits on bodies, the key, counts of requests, and errors in the form of the OpenAI
API."""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlm.serving.batcher import Busy
from dlm.serving.metrics import Metrics
from dlm.serving.service import UnknownModel

OPEN = ("/", "/health")  # without a key: they tell nothing of the model
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error"}
LOCAL = ("localhost", "127.0.0.1", "[::1]")


def require_key(host: str, key: str | None) -> None:
    """Raises `ValueError` if others than this machine could ask without a key."""
    if not is_loopback(host) and not key:
        raise ValueError(
            f"host {host} can be reached from other machines: set key=, which clients send as their API key"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server at this address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def refusal(status: int, message: str, param: str | None = None) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 429 else {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(error_body(status, message, param), status, headers)


def status_of(error: Exception) -> int:
    """The status that tells a client of an error."""
    known = {UnknownModel: 404, Busy: 429, ValueError: 400}
    return next((status for kind, status in known.items() if isinstance(error, kind)), 500)


def said_of(error: Exception) -> str:
    """An error in one line; of those that are no client's fault, nothing but their kind."""
    text = " ".join(str(error).split())
    return text if status_of(error) != 500 else f"the forward failed ({type(error).__name__}): see the server's log"


def invalid(error: RequestValidationError) -> JSONResponse:
    """The first thing that is wrong with a body, and where."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body" and not str(part).startswith("function-"))
    if first["type"] == "json_invalid":
        return refusal(400, f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    if first["type"] == "model_attributes_type":
        return refusal(400, "the body must be a JSON object, sent as Content-Type: application/json")
    if first["type"] == "extra_forbidden":
        return refusal(400, f"{place} is not known to this server", place)
    if first["type"] in ("none_required", "literal_error"):
        return refusal(400, f"{place} {first['input']!r} is not supported: {first['msg']}", place)
    return refusal(400, f"{place or 'the body'} {first['msg'].removeprefix('Value error, ')}", place or None)


def handle_errors(app: FastAPI) -> None:
    """Answer every error in the form of the OpenAI API."""

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}")

    async def refused(request: Request, error: Exception) -> JSONResponse:
        return refusal(status_of(error), said_of(error))

    for kind in (UnknownModel, Busy, ValueError):
        app.add_exception_handler(kind, refused)


class Guard:
    """Counts requests by those of the `paths`, asks for the key, takes only requests to one of the `hosts` (None: any),
    and reads bodies, up to `max_body` bytes, before anything else is done."""

    def __init__(
        self,
        app: ASGIApp,
        key: str | None,
        hosts: Sequence[str] | None,
        max_body: int,
        metrics: Metrics,
        paths: Sequence[str],
    ):
        self.app, self.hosts, self.max_body, self.metrics, self.paths = app, hosts, max_body, metrics, paths
        self.key = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        headers = dict(scope["headers"])
        body = self.turned_away(scope["path"], headers) or await self.body(headers, receive)
        if isinstance(body, JSONResponse):
            return await body(scope, receive, counted)
        if body is not None:
            await self.app(scope, replay(body, receive), counted)

    def turned_away(self, path: str, headers: dict[bytes, bytes]) -> JSONResponse | None:
        """The refusal of a client whose key or host is wrong."""
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and re.sub(r":\d*$", "", host) not in self.hosts:
            return refusal(400, f"host {host!r} is not this machine: ask {' or '.join(self.hosts)}")
        if self.key is None or path in OPEN or hmac.compare_digest(headers.get(b"authorization", b""), self.key):
            return None
        return refusal(401, "the key is missing or wrong: send it as Authorization: Bearer KEY")

    async def body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | JSONResponse | None:
        """The whole body, a refusal if it is too long, None if the client has gone."""
        too_long = refusal(413, f"the body exceeds this server's {self.max_body} bytes")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body:
            return too_long
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_body:
                return too_long
        return body


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body at once, and then what else comes."""
    given = False

    async def once() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


def event(data: Any, name: str | None = None) -> str:
    """A server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}\n\n"
