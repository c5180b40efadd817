"""Errors as RFC 9457 problem details: the one place where an error becomes an HTTP status."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hpsearch import errors
from hpsearch.spec.closed import field_path, message_of

log = logging.getLogger(__name__)

STATUS: tuple[tuple[type[errors.HpsearchError], int, str], ...] = (
    (errors.TooLarge, 413, "Too large"),
    (errors.InvalidInput, 422, "Invalid input"),
    (errors.NotFound, 404, "Not found"),
    (errors.ChangedMeanwhile, 412, "Changed meanwhile"),
    (errors.Conflict, 409, "Conflict"),
    (errors.Unauthorized, 401, "Unauthorized"),
    (errors.Forbidden, 403, "Forbidden"),
    (errors.HpsearchError, 500, "Internal error"),
)
"""First match counts, so the specific stand above the general."""

MEDIA_TYPE = "application/problem+json"


def problem(status: int, title: str, code: str, detail: str, **more: Any) -> JSONResponse:
    """One problem: `{"type", "title", "status", "code", "detail", ...}`."""
    body = {"type": f"urn:hpsearch:problem:{code}", "title": title, "status": status, "code": code, "detail": detail}
    headers = {"WWW-Authenticate": 'Bearer, Basic realm="hpsearch"'} if status == 401 else None
    given = {name: value for name, value in more.items() if value}
    return JSONResponse({**body, **given}, status, headers, MEDIA_TYPE)


def of_error(error: errors.HpsearchError) -> JSONResponse:
    """An error of ours."""
    status, title = next((status, title) for kind, status, title in STATUS if isinstance(error, kind))
    return problem(status, title, error.code, error.detail, field=error.field, line=error.line)


def install(app: FastAPI) -> None:
    """Make every error of the app a problem; nothing of the input or of an unexpected error leaks."""

    @app.exception_handler(errors.HpsearchError)
    async def expected(_: Request, error: errors.HpsearchError) -> JSONResponse:
        return of_error(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = []
        for fault in error.errors():
            place = fault["loc"][1:] if fault["loc"][:1] == ("body",) else fault["loc"]
            key = str(fault["ctx"]["key"]) if fault["type"] == "unknown_key" else ""
            faults.append({"field": field_path(place, key), "message": message_of(fault)})
        detail = "; ".join(f"{fault['field'] or 'body'}: {fault['message']}" for fault in faults)
        code = errors.InvalidSpec.code if error.errors()[0]["loc"][:1] == ("body",) else "invalid_request"
        return problem(422, "Invalid input", code, detail, field=faults[0]["field"], errors=faults)

    @app.exception_handler(HTTPException)
    async def protocol(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status_code, "http_error")
        answer = problem(error.status_code, str(error.detail), code, str(error.detail))
        for name, value in (error.headers or {}).items():
            answer.headers[name] = value
        return answer

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("request failed", exc_info=error, extra={"path": request.url.path, "method": request.method})
        detail = "The service failed unexpectedly; its log says why."
        return problem(500, "Internal error", "internal_error", detail)
