"""What is answered where no route of ours is: that there is nothing, or which methods there are; or the dashboard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from hpsearch.api.problems import problem

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
LOOKS = ("GET", "HEAD")


class Elsewhere:
    """Comes behind all routes of ours.

    Args:
        routes: Ours.
        dashboard: Has all addresses but those below `/v1`; None where it is not installed.
    """

    def __init__(self, routes: Iterable[BaseRoute], dashboard: ASGIApp | None) -> None:
        self._routes, self._dashboard = tuple(routes), dashboard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            return
        known = [method for method in METHODS if self._has_route(scope, method)]
        answer: ASGIApp
        if known:
            answer = _not_allowed(known, f"Only {', '.join(known)} can be done here; /v1/docs says what they do.")
        elif self._dashboard is None or f"{scope['path']}/".startswith("/v1/"):
            answer = problem(404, "Not found", "not_found", "There is nothing here; /v1/docs lists what is.")
        elif scope["method"] not in LOOKS:
            answer = _not_allowed(LOOKS, "The dashboard is read-only; use /v1.")
        else:
            answer = self._dashboard
        await answer(scope, receive, send)

    def _has_route(self, scope: Scope, method: str) -> bool:
        asked = {**scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in self._routes)


def _not_allowed(known: Sequence[str], detail: str) -> ASGIApp:
    answer = problem(405, "Method not allowed", "method_not_allowed", detail)
    answer.headers["Allow"] = ", ".join(known)
    return answer
