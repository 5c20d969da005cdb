#!/usr/bin/env bash
# A TPU VM or a pod slice of them: starts the job on every host of one that exists. JAX finds the hosts itself.
#
#   TPU=NAME ZONE=ZONE launch/clusters/tpu_vm.sh --config CONFIG --set data.directory=/shared/data --set run.directory=/shared/run
#
# INSTALL=1 first puts this commit on every host and installs it. /shared is a directory that all hosts mount (Filestore, or a
# bucket through gcsfuse). A spot slice is stopped 30 s after its hosts get SIGTERM; the same command on a new one continues.
set -euo pipefail
: "${TPU:?name of the TPU VM}" "${ZONE:?its zone}"
DIRECTORY=${DIRECTORY:-lclm_jax} # of the project on the hosts, from their home

everywhere() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

if [[ ${INSTALL:-} ]]; then
    packed=$(mktemp -d)
    git archive --format=tar.gz --output="$packed/lclm_jax.tar.gz" HEAD
    gcloud compute tpus tpu-vm scp "$packed/lclm_jax.tar.gz" "$TPU:" --zone="$ZONE" --worker=all
    everywhere "mkdir -p $DIRECTORY && tar -xzf lclm_jax.tar.gz -C $DIRECTORY && bash $DIRECTORY/launch/clusters/install.sh tpu"
fi
everywhere "cd $DIRECTORY && exec env LCLM_JAX_START_SECONDS=${LCLM_JAX_START_SECONDS:-300} .venv/bin/python -m ${MODULE:-launch.train} $(printf '%q ' "$@")"
