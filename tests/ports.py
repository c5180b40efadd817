"""Ports for servers that are told theirs when they are started."""

from __future__ import annotations

import contextlib
import random
import socket

CHOICES = range(20_000, 32_768)
"""Below those that the kernel gives to whoever takes any, and above Ray's: none is taken before its server starts."""


def free_port() -> int:
    """One that nobody listens on."""
    while True:
        port = random.SystemRandom().choice(CHOICES)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
