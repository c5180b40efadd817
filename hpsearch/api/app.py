"""The FastAPI application."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import optuna
from fastapi import FastAPI

from hpsearch import __version__
from hpsearch.api import acts, datasets, health, index, insight, problems, studies, trials, webhooks
from hpsearch.api.dashboard import dashboard
from hpsearch.api.elsewhere import Elsewhere
from hpsearch.api.guard import LimitedBody, OwnPagesOnly
from hpsearch.api.metrics import Measured, Metrics
from hpsearch.api.state import Service
from hpsearch.api.tokens import Tokens
from hpsearch.api.views import ProblemView
from hpsearch.settings import Settings
from hpsearch.spec.study import LARGEST_SPEC
from hpsearch.storage import Acts, Database, Datasets, Endings, Outbox, Studies, optuna_storage

_PROBLEM = {"content": {problems.MEDIA_TYPE: {"schema": ProblemView.model_json_schema()}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": "problem details", **_PROBLEM} for status in (401, 403, 404, 409, 412, 413, 422)
}


def create_app(settings: Settings) -> FastAPI:
    """The application over the settings' database; tables are created or migrated."""
    settings.prepare_home()
    database = Database(settings.sql_url)
    # Wrapped once: Optuna then keeps finished trials in memory instead of reading them at every request.
    storage = optuna.storages.get_storage(optuna_storage(settings.sql_url))
    uploads = Datasets(database, settings.datasets_folder)
    hooks = webhooks.load(settings.webhooks_path)
    tables = Studies(database), Acts(database), Endings(database)
    service = Service(settings, database, *tables, uploads, storage, frozenset(hooks))
    sender = webhooks.Sender(Outbox(database), hooks)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sender.start()
        threading.Thread(target=service.read_ahead, name="read-ahead", daemon=True).start()
        yield
        sender.stop()

    app = FastAPI(
        lifespan=lifespan,
        title="hpsearch",
        version=__version__,
        summary="Hyperparameter search for fine-tuning language models.",
        docs_url="/v1/docs",
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        responses=PROBLEMS,
    )
    app.state.service = service
    app.state.tokens = Tokens.load(settings.tokens_path, must_exist=settings.tokens_file is not None)
    app.state.metrics = Metrics(database, hooks)
    app.add_middleware(OwnPagesOnly, local=not app.state.tokens)
    app.add_middleware(LimitedBody, most=LARGEST_SPEC, unlimited="/v1/datasets")
    app.add_middleware(Measured, metrics=app.state.metrics)
    problems.install(app)
    for part in (index, studies, acts, trials, insight, datasets, health):
        app.include_router(part.router)
    looks = dashboard(storage)
    app.state.has_dashboard = looks is not None
    app.mount("/", Elsewhere(app.routes, looks), name="elsewhere")
    return app
