"""`/v1/datasets`: upload a data file once, name it in specs by the hash of its content."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from hpsearch.api.preflight import refuse
from hpsearch.api.state import Door
from hpsearch.api.studies import read, submit
from hpsearch.api.views import DatasetView
from hpsearch.dataset.lint import lint
from hpsearch.errors import TooLarge
from hpsearch.storage import DatasetRow

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

BODY = {"required": True, "content": {"application/jsonl": {"schema": {"type": "string", "format": "binary"}}}}


@router.post("", status_code=201, dependencies=[submit], openapi_extra={"requestBody": BODY})
async def upload_dataset(request: Request, response: Response, service: Door) -> DatasetView:
    """Upload examples, one JSON object per line, as the request's body. The same content again is the same dataset."""
    digest, size = hashlib.sha256(), 0
    folder = service.settings.datasets_folder
    with tempfile.NamedTemporaryFile(dir=folder, prefix="upload-", suffix=".part", delete=False) as part:
        upload = FilePath(part.name)
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > service.settings.max_upload_bytes:
                    raise TooLarge(f"the dataset is larger than {service.settings.max_upload_bytes:,} bytes")
                digest.update(chunk)
                await run_in_threadpool(part.write, chunk)
            part.flush()
            row = await run_in_threadpool(_keep, service, upload, digest.hexdigest())
        finally:
            upload.unlink(missing_ok=True)
    response.headers["Location"] = f"/v1/datasets/{row.id}"
    return DatasetView.of(row)


def _keep(service: Door, upload: FilePath, sha256: str) -> DatasetRow:
    # It may become validation data, which may be small: the training split's size is checked with the spec.
    report = lint(upload, "auto", "either")
    refuse(report, "dataset")
    return service.datasets.add(upload, sha256, str(report.format), report.examples, report.warnings)


@router.get("/{dataset}", dependencies=[read])
def get_dataset(dataset: Annotated[str, Path(pattern=r"^ds-[0-9a-f]{32}$")], service: Door) -> DatasetView:
    """One uploaded dataset."""
    return DatasetView.of(service.datasets.get(dataset))
