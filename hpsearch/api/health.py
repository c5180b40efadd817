"""For whoever watches over the service: alive, ready, and figures for Prometheus."""

from __future__ import annotations

import sqlalchemy as sa
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse

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
def metrics(service: Door) -> PlainTextResponse:
    """Studies by state, in Prometheus' text format."""
    lines = ["# HELP hpsearch_studies Studies by state.", "# TYPE hpsearch_studies gauge"]
    for state, count in count_by_state(service.database).items():
        lines.append(f'hpsearch_studies{{state="{state}"}} {count}')
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")
