"""Who may do what at the HTTP door, as dependencies of routes."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from hpsearch.api.tokens import Role, Token
from hpsearch.errors import Forbidden


class Require:
    """A dependency: the request's token has at least this role."""

    def __init__(self, role: Role) -> None:
        self._role = role

    def __call__(self, request: Request) -> None:
        """Raise Unauthorized or Forbidden."""
        role = token_of(request).role
        if role < self._role:
            raise Forbidden(f"this needs the role {self._role.name.lower()}; the token has {role.name.lower()}")


def token_of(request: Request) -> Token:
    """The request's token; Unauthorized without a valid one."""
    found: Token = request.app.state.tokens.of(request.headers.get("authorization", ""))
    return found


def _name(request: Request) -> str:
    return token_of(request).name


Who = Annotated[str, Depends(_name)]
"""A route's parameter: the name of the request's token."""
