"""What is turned away before any route looks at it."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpsearch.api.problems import of_error
from hpsearch.errors import Forbidden, TooLarge

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class OwnPagesOnly:
    """Refuses what a web page of somebody else makes a browser send.

    A browser sends a simple form without asking first, and adds the password that a person has given it for this
    address. Which pages are others' is told as by Go's `net/http.CrossOriginProtection`
    (https://pkg.go.dev/net/http#CrossOriginProtection): by `Sec-Fetch-Site`, else by `Origin` beside `Host`.

    Args:
        app: What is guarded.
        local: Whether there are no tokens. Whoever asks must then call this machine by a name of its own: a page that
            has its name resolve to this machine gives itself away by that (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, local: bool) -> None:
        self._app, self._local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass on."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host = headers.get("host", "")
            if self._local and not is_loopback(_hostname(host)):
                text = "without tokens only this machine is answered, by 127.0.0.1 or localhost"
                refusal = Forbidden(f"{text}, not by {host!r}: make a token with `hpsearch token NAME`")
                return await of_error(refusal)(scope, receive, send)
            if scope["method"] not in SAFE_METHODS and _is_of_others(headers, host):
                refusal = Forbidden("a web page of another site may not act here; a proxy must pass on the header Host")
                return await of_error(refusal)(scope, receive, send)
        await self._app(scope, receive, send)


def _is_of_others(headers: Headers, host: str) -> bool:
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site not in ("same-origin", "none")
    return origin is not None and urlsplit(origin).netloc.lower() != host.lower()


def _hostname(host: str) -> str:
    """Of a header `Host`, which may have a port; nothing if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


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
