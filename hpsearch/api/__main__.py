"""`python -m hpsearch.api --host HOST --port PORT`: the HTTP door as a process of its own."""

from __future__ import annotations

import argparse
import sys

import uvicorn

from hpsearch.api.app import create_app
from hpsearch.api.guard import is_loopback
from hpsearch.errors import HpsearchError
from hpsearch.service import begin
from hpsearch.settings import Settings


def main() -> None:
    """Serve until stopped. Any address but this machine's own needs tokens."""
    parser = argparse.ArgumentParser(prog="python -m hpsearch.api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    begin()
    try:
        app = create_app(Settings())
    except HpsearchError as error:  # of settings, home or database: what to do stands in its text
        sys.exit(f"error: {error}")
    if not app.state.tokens and not is_loopback(arguments.host):
        sys.exit(
            f"refusing to listen on {arguments.host} without tokens: whoever reaches it could use the service. "
            "Make one with `hpsearch token NAME --role submit`."
        )
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_config=None, timeout_graceful_shutdown=3)


if __name__ == "__main__":
    main()
