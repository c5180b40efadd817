"""The Optuna dashboard on our port: behind our tokens, and only for looking.

Its own API can delete and rename studies and end trials, without a login; only GET and HEAD get through.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import optuna
from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hpsearch.api.auth import Role
from hpsearch.api.problems import of_error, problem
from hpsearch.errors import HpsearchError


def mount(app: FastAPI, storage: optuna.storages.BaseStorage) -> None:
    """Mount the dashboard at `/`, behind every route of ours; nothing happens when it isn't installed."""
    if importlib.util.find_spec("optuna_dashboard") is None or importlib.util.find_spec("a2wsgi") is None:
        return
    from a2wsgi import WSGIMiddleware
    from optuna_dashboard import wsgi

    application: Any = wsgi(storage)
    app.mount("/", ReadOnly(WSGIMiddleware(application, workers=4)), name="dashboard")


class ReadOnly:
    """Lets GET and HEAD of token holders through."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            return
        if scope["path"].startswith("/v1/"):
            answer = problem(404, "Not found", "not_found", "There is nothing here; /v1/docs lists what is.")
            return await answer(scope, receive, send)
        if scope["method"] not in ("GET", "HEAD"):
            answer = problem(405, "Method not allowed", "method_not_allowed", "The dashboard is read-only; use /v1.")
            return await answer(scope, receive, send)
        try:
            role = scope["app"].state.tokens.of(Request(scope)).role
        except HpsearchError as error:
            return await of_error(error)(scope, receive, send)
        assert role >= Role.READ
        await self._app(scope, receive, send)
