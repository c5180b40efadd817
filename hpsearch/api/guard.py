"""What is turned away before any route looks at it."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpsearch.api.problems import of_error
from hpsearch.errors import Forbidden, TooLarge

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


class OwnPagesOnly:
    """Refuses what a web page of somebody else makes a browser send; for a service without tokens.

    A browser sends a simple form without asking first, and there is no token that it would lack.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass on."""
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS:
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            foreign = origin is not None and urlsplit(origin).hostname not in LOOPBACK_HOSTS
            if foreign or headers.get("sec-fetch-site") == "cross-site":
                refusal = Forbidden("a web page of another site may not act here")
                return await of_error(refusal)(scope, receive, send)
        await self._app(scope, receive, send)


class LimitedBody:
    """Refuses a body over the limit: before reading it when its size is announced, else as soon as it is over."""

    def __init__(self, app: ASGIApp, most: int, unlimited: str) -> None:
        self._app, self._most, self._unlimited = app, most, unlimited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413, or pass on."""
        if scope["type"] != "http" or scope["path"] == self._unlimited:
            return await self._app(scope, receive, send)
        refusal = TooLarge(f"the body is larger than {self._most:,} bytes")
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > self._most:
            return await of_error(refusal)(scope, receive, send)
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._most:
                raise HTTPException(413, refusal.detail)
            return message

        await self._app(scope, counted, send)
