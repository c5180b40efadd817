#!/bin/sh
# Succeeds when the API and its database answer.
exec python -c '
import sys, urllib.request
urllib.request.urlopen(sys.argv[1] + "/readyz", timeout=4)
' "${1:-http://127.0.0.1:8000}"
