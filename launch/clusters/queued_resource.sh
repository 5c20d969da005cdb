#!/usr/bin/env bash
# A queued resource: asks for one slice or several, waits until they are there, and starts the job on every host of all.
#
#   NAME=NAME ZONE=ZONE ACCELERATOR=v5p-128 RUNTIME=v2-alpha-tpuv5 SLICES=2 INSTALL=1 launch/clusters/queued_resource.sh \
#       --config CONFIG --set mesh.data=2 --set data.directory=/shared/data --set run.directory=/shared/run
#
# mesh.data is a multiple of SLICES: only that axis crosses slices. Of a resource that exists it starts the job again, which
# continues. PROVISIONING=--spot asks for spot slices; they are stopped 30 s after SIGTERM. INSTALL, DIRECTORY and /shared are
# those of tpu_vm.sh.
set -euo pipefail
: "${NAME:?of the queued resource}" "${ZONE:?its zone}"
SLICES=${SLICES:-1}
DIRECTORY=${DIRECTORY:-lclm_jax}

state() {
    gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)' 2>/dev/null
}

everywhere() {
    gcloud compute tpus queued-resources ssh "$NAME" --zone="$ZONE" --node=all --worker=all --command="$1"
}

if [[ -z $(state || true) ]]; then
    nodes=(--node-id="$NAME")
    if ((SLICES > 1)); then nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
    gcloud compute tpus queued-resources create "$NAME" --zone="$ZONE" "${nodes[@]}" ${PROVISIONING:+"$PROVISIONING"} \
        --accelerator-type="${ACCELERATOR:?such as v5p-128}" --runtime-version="${RUNTIME:?such as v2-alpha-tpuv5}"
fi
until [[ $(state) == ACTIVE ]]; do
    if [[ $(state) =~ FAILED|SUSPENDED ]]; then
        echo "error: queued resource $NAME is $(state); delete it with gcloud compute tpus queued-resources delete $NAME" >&2
        exit 1
    fi
    sleep "${POLL:-30}"
done
if [[ ${INSTALL:-} ]]; then
    packed=$(mktemp -d)
    git archive --format=tar.gz --output="$packed/lclm_jax.tar.gz" HEAD
    gcloud compute tpus queued-resources scp "$packed/lclm_jax.tar.gz" "$NAME:" --zone="$ZONE" --node=all --worker=all
    everywhere "mkdir -p $DIRECTORY && tar -xzf lclm_jax.tar.gz -C $DIRECTORY && bash $DIRECTORY/launch/clusters/install.sh tpu"
fi
everywhere "cd $DIRECTORY && exec env LCLM_JAX_START_SECONDS=${LCLM_JAX_START_SECONDS:-300} .venv/bin/python -m ${MODULE:-launch.train} $(printf '%q ' "$@")"
