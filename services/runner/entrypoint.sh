#!/bin/sh
# The head of the Ray cluster, then the runner, which searches on that cluster. Arguments go to `ray start`.
set -eu

# A container on several networks has several addresses; the workers are on the one where this name is known.
head=${RAY_HEAD:-ray-head:6379}
host=${head%:*} port=${head##*:}
address=$(getent ahostsv4 "$host" | head -n 1 | cut -d ' ' -f 1)
if [ -z "$address" ]; then
    echo "RAY_HEAD names the host '$host', which has no address here" >&2
    exit 1
fi

# No cores by default: trials belong on workers. Little shared memory: weights travel by disk.
ray start --head --node-ip-address="$address" --port="$port" \
    --num-cpus="${RAY_HEAD_CPUS:-0}" --num-gpus=0 --object-store-memory=134217728 \
    --include-dashboard=false --disable-usage-stats "$@"

# After `ray start`: Ray's workers inherit its environment, and need no password of the database.
. "$(dirname "$0")/../database-url.sh"
export HPSEARCH_RAY_ADDRESS="$address:$port"
exec python -m hpsearch.runner
