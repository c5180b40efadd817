"""The Optuna dashboard on our port: behind our tokens.

Its own API can delete and rename studies and end trials, without a login: only what looks may be passed on to it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import optuna
from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hpsearch.api.auth import token_of
from hpsearch.api.problems import of_error
from hpsearch.errors import HpsearchError


def dashboard(storage: optuna.storages.BaseStorage) -> ASGIApp | None:
    """The dashboard of a storage, which wants to be at `/`; None when it isn't installed."""
    if importlib.util.find_spec("optuna_dashboard") is None or importlib.util.find_spec("a2wsgi") is None:
        return None
    from a2wsgi import WSGIMiddleware
    from optuna_dashboard import wsgi

    application: Any = wsgi(storage)
    return ForTokenHolders(WSGIMiddleware(application, workers=4))


class ForTokenHolders:
    """Lets requests of token holders through."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass on."""
        try:
            token_of(Request(scope))  # whose role it is matters not: all may look
        except HpsearchError as error:
            return await of_error(error)(scope, receive, send)
        await self._app(scope, receive, send)
