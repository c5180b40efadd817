"""The HTTP client that people import: `Client().submit(spec)`, `client.events(name)`, `client.ranking(name)`."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import connect_sse

from hpsearch import errors
from hpsearch.lifecycle import StudyState

DEFAULT_URL = "http://127.0.0.1:8000"
RETRIES = 4
"""Of requests that may be repeated: reads, and creations with an idempotency key or a content hash."""
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
LONG = httpx.Timeout(3600.0, connect=CONNECT_SECONDS)
"""For what reads or writes whole files: a million examples are checked for minutes."""


class Client:
    """Talks to one service.

    Args:
        url: Of the service; left out, HPSEARCH_URL or this machine's port 8000.
        token: Left out, HPSEARCH_TOKEN.

    Every method raises the service's own errors (`hpsearch.errors`, told apart by their `code`), and
    ServiceUnavailable when nothing answers.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self.url = (url or os.environ.get("HPSEARCH_URL") or DEFAULT_URL).rstrip("/")
        token = token or os.environ.get("HPSEARCH_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        )

    def submit(self, spec: dict[str, Any], idempotency_key: str | None = None) -> tuple[dict[str, Any], bool]:
        """Queue a study; the answer is the study and whether it is new. Submitting the same spec twice is once.

        A key of one's own makes it once also where the spec has come to mean something else, or its data is gone.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        answer = self._request("POST", "/v1/studies", json=spec, headers=headers, timeout=LONG)
        return answer.json(), answer.status_code == 201

    def check(self, spec: dict[str, Any]) -> dict[str, Any]:
        """What the service says of a spec, without queueing it."""
        return self._json("POST", "/v1/studies:check", json=spec, timeout=LONG)

    def upload(self, path: Path) -> dict[str, Any]:
        """Upload a data file; name it in a spec as `dataset:<id>`."""
        length = {"Content-Length": str(path.stat().st_size)}
        return self._json("POST", "/v1/datasets", content=_Chunks(path), headers=length, timeout=LONG)

    def studies(self, limit: int = 20, after: str | None = None) -> dict[str, Any]:
        """A page of studies, newest first; `after` is `next` of the page before."""
        return self._json("GET", "/v1/studies", params=_given(limit=limit, after=after))

    def study(self, name: str) -> dict[str, Any]:
        """One study with its progress."""
        return self._json("GET", f"/v1/studies/{name}")

    def trials(self, name: str) -> list[dict[str, Any]]:
        """All trials of a study."""
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["number"] if found else None
            page = self._json("GET", f"/v1/studies/{name}/trials", params=_given(limit=1000, after=after))
            found += page["data"]
            if not page["has_more"]:
                return found

    def trial(self, name: str, number: int) -> dict[str, Any]:
        """One trial with its config and curve."""
        return self._json("GET", f"/v1/studies/{name}/trials/{number}")

    def ranking(self, name: str, top: int | None = None) -> dict[str, Any]:
        """Completed trials, best first, beside the baseline."""
        return self._json("GET", f"/v1/studies/{name}/ranking", params=_given(top=top))

    def insight(self, name: str, curves: bool = True) -> dict[str, Any]:
        """What its trials say about its search space: importances, edges, advice, curves."""
        return self._json("GET", f"/v1/studies/{name}/insight", params={"curves": curves})

    def borrowed(self, name: str) -> list[dict[str, Any]]:
        """The trials of earlier studies that teach it."""
        found: list[dict[str, Any]] = self._json("GET", f"/v1/studies/{name}/borrowed")["data"]
        return found

    def forget_borrowed(self, name: str, version: str | None = None) -> None:
        """Take away what it has borrowed."""
        self._request("DELETE", f"/v1/studies/{name}/borrowed", headers=_once(version))

    def pause(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Stop a study; `resume` lets it go on. Nothing that was trained is lost."""
        return self._act(name, "pause", version)

    def resume(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Queue a paused study again, or one that failed for a reason that was mended."""
        return self._act(name, "resume", version)

    def extend(self, name: str, version: str | None = None, **more: float | str) -> dict[str, Any]:
        """Add `trials`, `wall_clock`, `gpu_hours` or `tokens` to the budget, also after the study's end."""
        return self._act(name, "extend", version, more)

    def confirm(self, name: str, version: str | None = None, *, top: int = 3, seeds: int = 3) -> dict[str, Any]:
        """Have the `top` trials and the defaults trained again under so many fresh seeds; see the ranking's verdict."""
        return self._act(name, "confirm", version, {"top": top, "seeds": seeds})

    def change(
        self,
        name: str,
        version: str | None = None,
        *,
        priority: int | None = None,
        max_concurrent_trials: int | str | None = None,
    ) -> dict[str, Any]:
        """Change a study that is not over."""
        parallelism = _given(max_concurrent_trials=max_concurrent_trials) or None
        changes = _given(priority=priority, parallelism=parallelism)
        return self._json("PATCH", f"/v1/studies/{name}", json=changes, headers=_once(version))

    def clone(
        self, name: str, new_name: str, changes: dict[str, Any] | None = None, version: str | None = None
    ) -> tuple[dict[str, Any], bool]:
        """Queue a study like this one with changes laid over its spec; the answer says whether it is new."""
        body = {"name": new_name, "changes": changes or {}}
        answer = self._request("POST", f"/v1/studies/{name}/clone", json=body, headers=_once(version), timeout=LONG)
        return answer.json(), answer.status_code == 201

    def add_trial(self, name: str, params: dict[str, Any], version: str | None = None) -> dict[str, Any]:
        """Line up a trial with these params; what is left out is drawn."""
        return self._act(name, "trials", version, {"params": params})

    def stop_trial(self, name: str, number: int, version: str | None = None) -> dict[str, Any]:
        """End one trial at its next report."""
        return self._act(name, f"trials/{number}/stop", version)

    def continue_trial(self, name: str, number: int, version: str | None = None) -> dict[str, Any]:
        """Let a pruned trial go on to its end, under a new number; the budget grows by it."""
        return self._act(name, f"trials/{number}/continue", version)

    def cancel(self, name: str, version: str | None = None) -> dict[str, Any]:
        """End a study for good; its trials are kept."""
        return self._act(name, "cancel", version)

    def delete(self, name: str, version: str | None = None) -> None:
        """Forget a study that is over."""
        self._request("DELETE", f"/v1/studies/{name}", headers=_if_match(version), timeout=LONG)

    def _act(self, name: str, act: str, version: str | None, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._json("POST", f"/v1/studies/{name}/{act}", json=body, headers=_once(version))

    def download_adapter(self, name: str, number: int, target: Path) -> None:
        """Write a trial's weights to `target`, as a tar file."""
        path = f"/v1/studies/{name}/trials/{number}/adapter"
        try:
            with self._http.stream("GET", path, timeout=LONG) as answer:  # whole models are packed for minutes
                if answer.is_error:
                    answer.read()
                    raise _error_of(answer)
                with target.open("wb") as file:
                    for chunk in answer.iter_bytes():
                        file.write(chunk)
        except httpx.TransportError as error:
            raise errors.ServiceUnavailable(self._unreachable(error)) from error

    def events(self, name: str, after: int = 0) -> Generator[dict[str, Any]]:
        """What happens to a study, live, until it is over; goes on by itself when the connection breaks."""
        failures = 0
        while True:
            try:
                path, params = f"/v1/studies/{name}/events", {"after": after}
                with connect_sse(self._http, "GET", path, params=params) as source:
                    if source.response.is_error:
                        source.response.read()
                        raise _error_of(source.response)
                    for message in source.iter_sse():
                        failures = 0
                        if not message.data:  # how httpx-sse shows a keep-alive
                            continue
                        event = json.loads(message.data)
                        after = event["id"]
                        yield event
                if StudyState(self.study(name)["state"]).is_over:
                    return
            except httpx.TransportError as error:
                failures += 1
                if failures > RETRIES * 3:
                    raise errors.ServiceUnavailable(self._unreachable(error)) from error
                time.sleep(min(2.0**failures / 4, 5))

    def _json(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._request(method, path, **arguments).json()
        return answer

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        for attempt in range(RETRIES + 1):
            try:
                answer = self._http.request(method, path, **arguments)
                break
            except httpx.TransportError as error:
                # Creating is safe to repeat too: a study is known by its name, a dataset by its content.
                if attempt == RETRIES or isinstance(error, httpx.UnsupportedProtocol):
                    raise errors.ServiceUnavailable(self._unreachable(error)) from error
                time.sleep(0.25 * 2**attempt)
        if answer.is_error:
            raise _error_of(answer)
        return answer

    def _unreachable(self, error: Exception) -> str:
        return (
            f"no hpsearch service answers at {self.url} ({type(error).__name__}): "
            "start one with `hpsearch serve`, or set HPSEARCH_URL"
        )


class _Chunks:
    """A file's bytes, little by little; from the start again for each attempt."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while chunk := file.read(2**20):
                yield chunk


def _if_match(version: str | None) -> dict[str, str]:
    """Of an act that counts only while the study has this `version`; ChangedMeanwhile otherwise."""
    return {} if version is None else {"If-Match": f'"{version}"'}


def _once(version: str | None) -> dict[str, str]:
    """Of an act, with a key, so that a repeated request does the thing once: adding twice is not adding once."""
    return {**_if_match(version), "Idempotency-Key": str(uuid.uuid4())}


def _given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _error_of(answer: httpx.Response) -> errors.HpsearchError:
    """The service's problem as the error that it was raised from."""
    try:
        problem = answer.json()
        code, detail = str(problem["code"]), str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        return errors.HpsearchError(f"the service answered {answer.status_code}: {answer.text[:200]}")
    kind = _BY_CODE.get(code, errors.InvalidInput if answer.status_code == 422 else errors.HpsearchError)
    return kind(detail, str(problem.get("field") or ""), int(problem.get("line") or 0))


def _tree(kind: type[errors.HpsearchError]) -> Iterator[type[errors.HpsearchError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


_BY_CODE = {kind.code: kind for kind in _tree(errors.HpsearchError)}
