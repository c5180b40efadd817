"""Access tokens: hashed at rest in a file, with the roles read, submit and admin."""

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

from hpsearch.errors import InvalidInput, Unauthorized


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
    def load(cls, path: Path, *, must_exist: bool) -> Tokens:
        """Read the file.

        Args:
            path: Of the file.
            must_exist: Whether somebody has named it: a mistyped name must not open the door.

        Raises:
            InvalidInput: It is broken, or missing and must not be.
        """
        if not path.is_file():
            if must_exist:
                text = f"HPSEARCH_TOKENS_FILE: there is no file {path}"
                raise InvalidInput(f"{text}; make it with `hpsearch token NAME`, or leave the setting out")
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

    def of(self, authorization: str) -> Token:
        """The token in a request's header `Authorization`; Unauthorized without a valid one."""
        if not self._tokens:
            return ANYBODY
        presented = hashlib.sha256(_presented(authorization).encode()).hexdigest()
        for token in self._tokens:
            if hmac.compare_digest(presented, token.sha256):
                return token
        raise Unauthorized


def _presented(authorization: str) -> str:
    """From `Bearer TOKEN`, or from `Basic` (any user, the token as password: what a browser asks for)."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value).decode().partition(":")[2]
        except (binascii.Error, ValueError):  # not base64, not ASCII, not UTF-8
            return ""
    return ""


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
