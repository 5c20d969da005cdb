#!/usr/bin/env bash
# A GKE cluster managed by XPK: one slice or several, as a JobSet that XPK writes. JAX finds the hosts itself.
#
#   CLUSTER=NAME PROJECT=PROJECT ZONE=ZONE TYPE=v5p-128 SLICES=2 IMAGE=IMAGE NAME=NAME launch/clusters/xpk.sh \
#       --config CONFIG --set mesh.data=2 --set data.directory=/shared/data --set run.directory=/shared/run
#
# IMAGE is built from launch/clusters/Dockerfile. /shared is what `xpk storage attach` mounts in every workload. mesh.data is a
# multiple of SLICES. After a failure the job starts again, up to RESTARTS times, and continues.
set -euo pipefail
: "${CLUSTER:?}" "${PROJECT:?}" "${ZONE:?}" "${TYPE:?such as v5p-128}" "${IMAGE:?}" "${NAME:?of the workload}"
xpk workload create --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" --workload="$NAME" \
    --tpu-type="$TYPE" --num-slices="${SLICES:-1}" --docker-image="$IMAGE" \
    --max-restarts="${RESTARTS:-20}" --restart-on-user-code-failure --termination-grace-period-seconds=300 \
    --env LCLM_JAX_START_SECONDS=900 \
    --command="python -m ${MODULE:-launch.train} $(printf '%q ' "$@")"
