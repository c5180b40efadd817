#!/bin/sh
# A Ray node with this machine's cores and GPUs. It ends when it loses the head, and is started again to look for a
# new one. Arguments go to `ray start`.
set -eu
exec ray start --address="${RAY_HEAD:-ray-head:6379}" --object-store-memory=134217728 --disable-usage-stats --block "$@"
