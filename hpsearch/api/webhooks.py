"""Tells webhooks what happens, at least once and in order.

The operator lists them in a file: addresses and secrets are not the business of studies, which only name them. So
nothing that a client sends makes the service call an address of the client's choice. Requests are signed as in the
Standard Webhooks specification (https://www.standardwebhooks.com), for which receivers find libraries.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import random
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import httpx
from pydantic import Field, RootModel, SecretStr, ValidationError, field_validator

from hpsearch.errors import InvalidInput, InvalidSpec
from hpsearch.spec.closed import Closed, as_invalid_spec
from hpsearch.spec.study import StudySpec
from hpsearch.storage import DATABASE_AWAY, Delivery, Event, Outbox

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
TIMEOUT_SECONDS = 10.0
CLAIM_SECONDS = 60.0
LONGEST_WAIT = 900.0
ATTEMPTS = 40
"""Over some eight hours; then the event is passed over, and the log says so."""


class Webhook(Closed):
    """One receiver."""

    url: str = Field(pattern=r"^https?://[^\s@]+$", max_length=2000)
    """Called as it stands: redirects are not followed. A private address is fine, for the operator wrote it."""
    events: tuple[str, ...] = (
        "study.verdict",
        "study.finished",
        "study.failed",
        "study.cancelled",
        "study.paused",
    )
    """Kinds of events."""
    studies: Literal["named", "all"] = "named"
    """`named`: those whose spec names this webhook under `notify`."""
    secret: SecretStr | None = None
    """`whsec_` and base64 of 24 to 64 bytes; left out, requests are not signed."""

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not 24 <= len(_key(secret)) <= 64:
            raise ValueError("a secret is 'whsec_' and base64 of 24 to 64 bytes")
        return secret


class _File(RootModel[dict[str, Webhook]]):
    pass


def load(path: Path) -> dict[str, Webhook]:
    """The operator's webhooks by name; none without the file."""
    if not path.is_file():
        return {}
    try:
        return _File.model_validate_json(path.read_text()).root
    except ValidationError as error:
        raise InvalidInput(f"{path}: {as_invalid_spec(error)}") from error


def check_known(spec: StudySpec, known: Collection[str]) -> None:
    """Raise InvalidSpec when the spec names a webhook that nobody would tell."""
    for name in spec.notify:
        if name not in known:
            listed = (
                f"there are: {', '.join(known)}"
                if known
                else "there were none in the operator's file when the service started"
            )
            raise InvalidSpec(f"notify: there is no webhook '{name}'; {listed}", "notify")


class Sender:
    """Tells each webhook in a thread of its own, so that one that hangs keeps nobody else waiting."""

    def __init__(self, outbox: Outbox, webhooks: dict[str, Webhook]) -> None:
        self._outbox = outbox
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._tell, args=(name, webhook), name=f"webhook-{name}", daemon=True)
            for name, webhook in webhooks.items()
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the request that is under way."""
        self._ended.set()
        for thread in self._threads:
            thread.join(TIMEOUT_SECONDS)

    def _tell(self, name: str, webhook: Webhook) -> None:
        every = webhook.studies == "all"
        while not self._ended.is_set():
            try:
                delivery = self._outbox.claim(name, webhook.events, every, CLAIM_SECONDS)
                if delivery is None:
                    self._ended.wait(POLL_SECONDS)
                else:
                    self._deliver(delivery, webhook)
            except DATABASE_AWAY:
                log.warning("database away", exc_info=True, extra={"webhook": name})
                self._ended.wait(POLL_SECONDS)
            except Exception:  # whatever it is: nobody would miss a thread that ended
                log.exception("webhook failed", extra={"webhook": name})
                self._ended.wait(POLL_SECONDS)

    def _deliver(self, delivery: Delivery, webhook: Webhook) -> None:
        fields = {"webhook": delivery.webhook, "study": delivery.event.study, "event": delivery.event.id}
        try:
            content, headers = request(delivery.event, webhook.secret, time.time())
            # The answer's body is not read: it may be without end.
            with httpx.stream("POST", webhook.url, content=content, headers=headers, timeout=TIMEOUT_SECONDS) as answer:
                said = None if answer.is_success else f"it answered {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:  # also names and certificates
            said = f"{type(error).__name__}"
        if said is None:
            self._outbox.done(delivery)
        elif delivery.attempt >= ATTEMPTS:
            log.error("webhook given up", extra={**fields, "reason": said, "attempt": delivery.attempt})
            self._outbox.done(delivery)
        else:
            log.warning("webhook not told", extra={**fields, "reason": said, "attempt": delivery.attempt})
            self._outbox.again(delivery, min(2.0 ** (delivery.attempt - 1), LONGEST_WAIT) * random.uniform(0.5, 1))


def request(event: Event, secret: SecretStr | None, now: float) -> tuple[bytes, dict[str, str]]:
    """Body and headers: a text that Slack and its like show, the event itself beside it, and who says so."""
    content = json.dumps({"text": _text(event), **event.as_json()}).encode()
    identifier, timestamp = f"evt_{event.id}", str(int(now))
    headers = {"Content-Type": "application/json", "webhook-id": identifier, "webhook-timestamp": timestamp}
    if secret is not None:
        headers["webhook-signature"] = signature(secret, identifier, timestamp, content)
    return content, headers


def signature(secret: SecretStr, identifier: str, timestamp: str, content: bytes) -> str:
    """The header `webhook-signature`: HMAC-SHA256 over `id.timestamp.body`."""
    signed = f"{identifier}.{timestamp}.".encode() + content
    return "v1," + base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode()


def _key(secret: SecretStr) -> bytes:
    try:
        return base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)
    except binascii.Error:
        return b""


def _text(event: Event) -> str:
    what = event.kind.replace(".", " ").replace("_", " ")
    number = f" {event.details['number']}" if "number" in event.details else ""
    reason = event.details.get("reason") or event.details.get("text") or ""
    return f"hpsearch: {event.study}: {what}{number}" + (f": {reason}" if reason else "")
