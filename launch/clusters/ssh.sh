#!/usr/bin/env bash
# Plain SSH to GPU hosts: one process a host, which takes all its GPUs.
#
#   HOSTS=FILE launch/clusters/ssh.sh --config CONFIG --set data.directory=/shared/data --set run.directory=/shared/run
#
# FILE names a host a line; the first runs process 0, which all must reach on PORT. Every host has the project in DIRECTORY with
# its .venv (launch/clusters/install.sh gpu) and mounts /shared. Ctrl-C here stops all at one step, saved.
set -euo pipefail
: "${HOSTS:?a file with a host a line}"
DIRECTORY=${DIRECTORY:-lclm_jax}
PORT=${PORT:-8476}

mapfile -t hosts < <(grep -v '^[[:space:]]*\(#\|$\)' "$HOSTS")
address=${hosts[0]#*@}:$PORT
clients=()
for i in "${!hosts[@]}"; do
    job="JAX_COORDINATOR_ADDRESS=$address JAX_NUM_PROCESSES=${#hosts[@]} JAX_PROCESS_ID=$i LCLM_JAX_START_SECONDS=${LCLM_JAX_START_SECONDS:-300}"
    # With a terminal (-tt) the host hears when this end is gone.
    ssh -tt "${hosts[i]}" "cd $DIRECTORY && exec env $job .venv/bin/python -m ${MODULE:-launch.train} $(printf '%q ' "$@")" \
        </dev/null > >(sed -u "s|^|${hosts[i]}: |") 2>&1 &
    clients+=($!)
done
trap 'kill "${clients[@]}" 2>/dev/null || true' INT TERM

ended() { # waits for one, whatever interrupts
    local code=0
    wait "$1" || code=$?
    if kill -0 "$1" 2>/dev/null; then ended "$1"; else return "$code"; fi
}

status=0
for client in "${clients[@]}"; do
    ended "$client" || status=$?
done
exit "$status"
