#!/bin/sh
# Succeeds when the Ray head answers this node. (The node's own processes are watched by `ray start --block`.)
exec ray health-check --address "${RAY_HEAD:-ray-head:6379}"
