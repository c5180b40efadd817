#!/bin/sh
# Succeeds when the Ray head answers to the cluster's token. (The runner itself is the container's main process.)
exec ray health-check --address "${RAY_HEAD:-ray-head:6379}"
