"""For whoever watches over the service: alive, ready, and figures for Prometheus."""

from __future__ import annotations

import sqlalchemy as sa
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from hpsearch import __version__
from hpsearch.api.problems import problem
from hpsearch.api.state import Door
from hpsearch.api.studies import read
from hpsearch.storage import count_by_state

router = APIRouter(tags=["health"])


@router.get("/livez")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz")
def ready(service: Door) -> Response:
    """The database answers too."""
    try:
        count_by_state(service.database)
    except sa.exc.SQLAlchemyError:
        return problem(503, "Not ready", "database_unavailable", "The database does not answer.")
    return JSONResponse({"status": "ok"})


@router.get("/metrics", dependencies=[read], response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    """Requests, studies, trials, tokens, device seconds, ages of queue and leases, in Prometheus' text format."""
    text: bytes = request.app.state.metrics.text()
    return Response(text, media_type=CONTENT_TYPE_LATEST)
