"""`python -m hpsearch.runner`: connect to Ray, then claim studies until told to stop."""

from __future__ import annotations

import logging
import signal
import sys

from hpsearch.errors import HpsearchError
from hpsearch.raytune.driver import connect
from hpsearch.runner.runner import Runner
from hpsearch.service import begin
from hpsearch.settings import Settings

log = logging.getLogger("hpsearch.runner")  # __name__ is "__main__" here, which our settings do not reach


def main() -> None:
    """Run until SIGTERM or SIGINT: trials stop then, and studies queue again. 1 when only a new process can go on."""
    begin()
    try:
        settings = Settings()
        runner = Runner(settings, connect(settings.ray_address))
    except HpsearchError as error:  # of settings or database: what to do stands in its text
        sys.exit(f"error: {error}")
    # After Ray, which installs a handler of its own.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: runner.stop.set())
    log.info("runner ready", extra={"home": str(settings.home)})
    runner.run()
    sys.exit(1 if runner.needs_a_new_process else 0)  # service managers start again what failed


if __name__ == "__main__":
    main()
