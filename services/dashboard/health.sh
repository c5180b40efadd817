#!/bin/sh
# Succeeds when the dashboard and its database answer.
exec "$(dirname "$0")/../api/health.sh" "${1:-http://127.0.0.1:8001}"
