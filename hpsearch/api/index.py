"""`/v1`: where everything is."""

from __future__ import annotations

from fastapi import APIRouter, Request

from hpsearch import __version__
from hpsearch.api.studies import read
from hpsearch.api.views import IndexView

router = APIRouter(tags=["health"])


@router.get("/v1", dependencies=[read])
@router.get("/v1/", dependencies=[read], include_in_schema=False)
async def get_index(request: Request) -> IndexView:
    """Where everything is; the rest has the description at `openapi`."""
    app = request.app
    links = {
        "studies": app.url_path_for("list_studies"),
        "datasets": app.url_path_for("upload_dataset"),
        "alive": app.url_path_for("live"),
        "ready": app.url_path_for("ready"),
        "metrics": app.url_path_for("metrics"),
        "openapi": app.openapi_url,
        "docs": app.docs_url,
    }
    if app.state.has_dashboard:
        links["dashboard"] = "/dashboard"
    return IndexView(version=__version__, links=links)
