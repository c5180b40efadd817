"""Errors as RFC 9457 problem details: the one place where an error becomes an HTTP status."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hpsearch import errors
from hpsearch.spec.closed import faults_of, sentence

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


def _within_body(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return location[1:] if location[:1] == ("body",) else location


def _no_json(fault: Mapping[str, Any]) -> str:
    """What is wrong with a body that is no JSON object at all, or nothing."""
    if fault["type"] == "json_invalid":
        return f"the body is not JSON: {fault['ctx']['error']}, character {int(fault['loc'][-1]) + 1}"
    if tuple(fault["loc"]) != ("body",):
        return ""
    if fault["type"] == "missing":
        return "the body is missing: it is a JSON object"
    if fault["type"] == "model_attributes_type":
        return "the body is a JSON object, sent with the header 'Content-Type: application/json'"
    return ""


def install(app: FastAPI) -> None:
    """Make every error of the app a problem; nothing of the input or of an unexpected error leaks."""

    @app.exception_handler(errors.HpsearchError)
    async def expected(_: Request, error: errors.HpsearchError) -> JSONResponse:
        return of_error(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        found = [{**fault, "loc": _within_body(fault["loc"])} for fault in error.errors()]
        faults = [{"field": fault["field"], "message": fault["message"]} for fault in faults_of(found)]
        if fault := _no_json(error.errors()[0]):
            faults = [{"field": "", "message": fault}]
        code = errors.InvalidSpec.code if error.errors()[0]["loc"][:1] == ("body",) else "invalid_request"
        return problem(422, "Invalid input", code, sentence(faults), field=faults[0]["field"], errors=faults)

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
