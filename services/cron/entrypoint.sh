#!/bin/sh
# cron in the foreground, with the nightly study in the crontab of a user who is not root.
set -eu
here=$(dirname "$0")
user=${CRON_USER:-hpsearch}
home=$(getent passwd "$user" | cut -d : -f 6)

# What a job prints must reach the container's log, which only root may open: through a pipe that root reads.
HPSEARCH_CRON_LOG=/run/hpsearch-cron.log
rm -f "$HPSEARCH_CRON_LOG"
mkfifo "$HPSEARCH_CRON_LOG"
chmod 0622 "$HPSEARCH_CRON_LOG"
cat <>"$HPSEARCH_CRON_LOG" &

# cron passes no environment on: what the job needs goes into a file of its user, each value quoted.
settings=$home/.config/hpsearch/cron.env
mkdir -p "${settings%/*}"
(umask 077 && : >"$settings")
for name in HPSEARCH_URL HPSEARCH_TOKEN HPSEARCH_TOKEN_FILE HPSEARCH_BIN HPSEARCH_NIGHTLY_SPEC HPSEARCH_CRON_LOG; do
    eval "value=\${$name-}"
    if [ -n "$value" ]; then
        printf "%s='%s'\n" "$name" "$(printf %s "$value" | sed "s/'/'\\\\''/g")" >>"$settings"
    fi
done
chown -R "$user" "$home/.config"

crontab -u "$user" "${CRONTAB_FILE:-$here/crontab}"
exec cron -f
