#!/bin/sh
# The HTTP API. Arguments come last and so win: `entrypoint.sh --port 8001`.
set -eu
. "$(dirname "$0")/../database-url.sh"
exec python -m hpsearch.api --host 0.0.0.0 --port 8000 "$@"
