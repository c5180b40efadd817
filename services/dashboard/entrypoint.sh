#!/bin/sh
# A second API for people who look. Its tokens are read tokens, so nothing can be changed through it.
set -eu
exec "$(dirname "$0")/../api/entrypoint.sh" --port 8001 "$@"
