#!/bin/sh
# Succeeds while cron lives.
kill -0 "$(cat /run/crond.pid)"
