#!/bin/sh
# Submits the nightly study. Safe to fire twice: it is named after its file and the day (UTC), and the same name with
# the same spec is the study that is there already. Prints nothing and exits 0, or says what went wrong and exits with
# another code.
#
# cron passes no environment, so it is read from ~/.config/hpsearch/cron.env (or $HPSEARCH_CRON_ENV), shell lines of
#   HPSEARCH_URL           of the service; left out, http://127.0.0.1:8000
#   HPSEARCH_TOKEN         or HPSEARCH_TOKEN_FILE, a file that holds it
#   HPSEARCH_BIN           the command; left out, that of this checkout (`make`), else `hpsearch` on the PATH
#   HPSEARCH_NIGHTLY_SPEC  another study than studies/nightly.yaml
#   HPSEARCH_CRON_LOG      where output goes; left out, to cron, which mails it
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

settings=${HPSEARCH_CRON_ENV:-$HOME/.config/hpsearch/cron.env}
if [ -e "$settings" ]; then
    set -a
    . "$settings"
    set +a
fi
if [ -n "${HPSEARCH_CRON_LOG:-}" ]; then
    exec >>"$HPSEARCH_CRON_LOG" 2>&1
fi
if [ -n "${HPSEARCH_TOKEN_FILE:-}" ]; then
    HPSEARCH_TOKEN=$(cat "$HPSEARCH_TOKEN_FILE")
    export HPSEARCH_TOKEN
fi

# One at a time, on the script itself: no lock file to leave behind. (macOS has no flock; the service copes alone.)
if command -v flock >/dev/null; then
    exec 9<"$0"
    flock 9
fi
ours=$here/../../.venv/bin/hpsearch
if [ -z "${HPSEARCH_BIN:-}" ] && [ -x "$ours" ]; then
    HPSEARCH_BIN=$ours
fi
spec=${HPSEARCH_NIGHTLY_SPEC:-$here/../../studies/nightly.yaml}
file=${spec##*/}
exec "${HPSEARCH_BIN:-hpsearch}" submit "$spec" --name "${file%.*}-$(date -u +%F)" --quiet
