"""`/v1/studies/{name}/trials`, their weights, and the study's events."""

from __future__ import annotations

import asyncio
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from hpsearch.api.state import Door
from hpsearch.api.studies import Name, read
from hpsearch.api.trial_views import TrialDetailView, TrialListView, TrialView
from hpsearch.results import TrialState
from hpsearch.storage import events_after

router = APIRouter(prefix="/v1/studies/{name}", tags=["trials"])

POLL_SECONDS = 0.5
LAST_ID = 2**63 - 1
STREAM_SECONDS = 3600
"""A stream ends after so long; the client goes on behind the last event it saw."""

Number = Annotated[int, Path(ge=0, le=2**31, description="The trial's number.")]


@router.get("/trials", dependencies=[read])
def list_trials(
    name: Name,
    service: Door,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int | None, Query(ge=0, le=2**31)] = None,
    state: TrialState | None = None,
) -> TrialListView:
    """Trials, by number."""
    service.studies.get(name)
    found, has_more = service.page(name, limit, after, state)
    return TrialListView(data=[TrialView(**TrialView.fields_of(trial)) for trial in found], has_more=has_more)


@router.get("/trials/{number}", dependencies=[read])
def get_trial(name: Name, number: Number, service: Door) -> TrialDetailView:
    """One trial: its params, its resolved config, its curve, and what that says of its fit."""
    objective = service.studies.get(name).spec.objective
    return TrialDetailView.of(service.trial(name, number), objective)


@router.get("/trials/{number}/adapter", dependencies=[read], response_class=FileResponse)
def get_adapter(name: Name, number: Number, service: Door) -> FileResponse:
    """The trial's weights as a tar file: an adapter in PEFT's format, or a whole model in Hugging Face's."""
    service.studies.get(name)
    folder = FilePath(service.adapter(name, number))
    packed = tempfile.NamedTemporaryFile(prefix="hpsearch-adapter-", suffix=".tar", delete=False)  # noqa: SIM115
    try:
        with packed, tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(folder, arcname=f"{name}-{number}")
    except BaseException:  # such as a disk that is full: what is packed so far must not stay on it
        FilePath(packed.name).unlink(missing_ok=True)
        raise
    return _Passing(packed.name, media_type="application/x-tar", filename=f"{name}-{number}.tar")


class _Passing(FileResponse):
    """A file that is gone once it was sent, or could not be."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            FilePath(self.path).unlink(missing_ok=True)


def _existing(name: Name, service: Door) -> None:
    """Before the stream starts: afterwards it is too late for a 404."""
    service.studies.get(name)


@router.get("/events", dependencies=[read, Depends(_existing)], response_class=EventSourceResponse)
async def stream_events(
    name: Name,
    service: Door,
    after: Annotated[int, Query(ge=0, le=LAST_ID, description="Start behind this event.")] = 0,
    last_event_id: Annotated[int | None, Header(ge=0, le=LAST_ID)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """What happens to the study, live, from its beginning; ends when the study is over."""
    last = after if last_event_id is None else last_event_id
    deadline = time.monotonic() + STREAM_SECONDS
    while time.monotonic() < deadline:
        # The state is read before the events: what happened before it was read is among them.
        state = (await run_in_threadpool(service.studies.get, name)).state
        events = await run_in_threadpool(events_after, service.database, name, last)
        for event in events:
            last = event.id
            yield ServerSentEvent(data=event.as_json(), event=event.kind, id=str(event.id))
        if state.is_over and not events:
            return
        if not events:
            await asyncio.sleep(POLL_SECONDS)
