"""Who may do what: bearer tokens, hashed at rest, with the roles read, submit and admin."""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from hpsearch.errors import Forbidden, InvalidInput, Unauthorized


class Role(enum.IntEnum):
    """Each role may do what the ones before it may."""

    READ = 1
    """Look at everything."""
    SUBMIT = 2
    """Queue studies, act on them, upload datasets."""
    ADMIN = 3
    """Delete."""


@dataclass(frozen=True)
class Token:
    """One token as it is kept: its SHA-256, never itself."""

    name: str
    role: Role
    sha256: str


ANYBODY = Token("local", Role.ADMIN, "")
"""Whoever reaches a service without tokens."""


class Tokens:
    """The tokens of a service; without any, everybody who can reach it may do everything."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self._tokens = tokens

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """Read the file; a missing one means no tokens, a broken one is an error."""
        if not path.is_file():
            return cls(())
        try:
            rows = json.loads(path.read_text())
            tokens = tuple(Token(row["name"], Role[row["role"].upper()], row["sha256"]) for row in rows)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"{path} is not a list of {{name, role, sha256}}: {error}") from error
        if not tokens or not isinstance(rows, list):  # an empty file must not open the door
            raise InvalidInput(f"{path} is there but holds no tokens; remove it, or make one with `hpsearch token`")
        return cls(tokens)

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def of(self, request: Request) -> Token:
        """The request's token; Unauthorized without a valid one."""
        if not self._tokens:
            return ANYBODY
        presented = hashlib.sha256(_presented(request).encode()).hexdigest()
        for token in self._tokens:
            if hmac.compare_digest(presented, token.sha256):
                return token
        raise Unauthorized


def _presented(request: Request) -> str:
    """From `Bearer TOKEN`, or from `Basic` (any user, the token as password: what a browser asks for)."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value).decode().partition(":")[2]
        except (binascii.Error, ValueError):  # not base64, not ASCII, not UTF-8
            return ""
    return ""


class Require:
    """A dependency: the request's token has at least this role."""

    def __init__(self, role: Role) -> None:
        self._role = role

    def __call__(self, request: Request) -> None:
        """Raise Unauthorized or Forbidden."""
        role = request.app.state.tokens.of(request).role
        if role < self._role:
            raise Forbidden(f"this needs the role {self._role.name.lower()}; the token has {role.name.lower()}")


def _name(request: Request) -> str:
    return str(request.app.state.tokens.of(request).name)


Who = Annotated[str, Depends(_name)]
"""A route's parameter: the name of the request's token."""


def add_token(path: Path, name: str, role: Role) -> str:
    """Make a token, keep its hash in the file, and return it: it can't be shown again."""
    token = f"hps_{secrets.token_urlsafe(32)}"
    rows = json.loads(path.read_text()) if path.is_file() else []
    if any(row["name"] == name for row in rows):
        raise InvalidInput(f"{path} has a token named '{name}' already")
    rows.append({"name": name, "role": role.name.lower(), "sha256": hashlib.sha256(token.encode()).hexdigest()})
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".new")
    written.touch(mode=0o600)
    written.write_text(json.dumps(rows, indent=2) + "\n")
    written.replace(path)
    return token
