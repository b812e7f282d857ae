#!/usr/bin/env bash
# One search, or any other command of dvsnas that takes several processes, on all hosts of a Cloud TPU pod slice.
#
# Usage:
#   TPU_NAME=my-tpu ZONE=us-central2-b launch/tpu_pod.sh search --config=configs/cityscapes_search.py \
#     --workdir=/mnt/shared/runs/cityscapes
# Edit, by the environment:
#   TPU_NAME, ZONE  of the slice (needed); PROJECT, where it is not the default one of gcloud
#   REMOTE_DIR      the repository on every host (default: dvsnas_jax in the home folder), installed there by
#                   `python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[tpu]'`
#   REMOTE_ENV      more variables on the hosts, for example "DVSNAS_CITYSCAPES=/mnt/shared/cityscapes"
#   MAX_RESTARTS    how often a host starts the command again after code 75 (default: 50), RESTART_SECONDS after it (10)
# --workdir must be a folder that all hosts see. When the slice is preempted its hosts are gone: make it again and run
# the same command. To stop: `gcloud compute tpus tpu-vm ssh ... --worker=all --command="pkill -f dvsnas_until_done"`, then
# send SIGTERM to the processes of dvsnas.
set -euo pipefail
if [ $# = 0 ]; then
  echo "usage: TPU_NAME=... ZONE=... launch/tpu_pod.sh COMMAND [OPTIONS]" >&2
  exit 2
fi
: "${TPU_NAME:?set TPU_NAME to the name of the slice}" "${ZONE:?set ZONE to the zone of the slice}"
words=$(printf '%q ' "$@")
# Every host runs this; after a stop all of them end with 75, so all of them start again.
remote="cd $(printf '%q' "${REMOTE_DIR:-dvsnas_jax}") || exit 2
export DVSNAS_TPU_POD=1 ${REMOTE_ENV:-}
dvsnas_until_done() {
  local code=0 start
  for ((start = 0; start <= ${MAX_RESTARTS:-50}; start++)); do
    code=0
    .venv/bin/dvsnas $words || code=\$?
    if [ \$code != 75 ]; then return \$code; fi
    sleep ${RESTART_SECONDS:-10}
  done
  return \$code
}
dvsnas_until_done"
exec gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --worker=all \
  --command="$remote"
