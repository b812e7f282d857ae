#!/usr/bin/env bash
# Starts N processes of one run on this machine: CPU devices, gloo over the loopback. For trying and for tests.
# Usage: launch/local_multiprocess.sh N COMMAND..., for example
#   launch/local_multiprocess.sh 2 .venv/bin/dvsnas search --config=configs/smoke.py --workdir=runs/two
# What to edit: nothing. DEVICES=4 gives each process 4 virtual devices (1); PORT=12345 is the coordinator's port (a free one);
# PIDS=FILE receives the processes' ids, a line each; LOGS=DIR gives each process a log DIR/I.log instead of this terminal.
# Ends with the first exit code other than 0, in order of the processes; TERM and INT are passed on.
set -euo pipefail
if [ $# -lt 2 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 N COMMAND..." >&2
  exit 2
fi
num=$1
shift
port=${PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
export DVSNAS_COORDINATOR=127.0.0.1:$port DVSNAS_NUM_PROCESSES=$num
export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"
pids=()
for ((i = 0; i < num; i++)); do
  if [ -n "${LOGS:-}" ]; then
    mkdir -p "$LOGS"
    DVSNAS_PROCESS_ID=$i "$@" >"$LOGS/$i.log" 2>&1 &
  else
    DVSNAS_PROCESS_ID=$i "$@" &
  fi
  pids+=($!)
done
again=0
trap 'again=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
[ -z "${PIDS:-}" ] || printf '%s\n' "${pids[@]}" >"$PIDS"
code=0
for pid in "${pids[@]}"; do
  one=0
  wait "$pid" || one=$?
  # A trapped signal ends `wait` early: the processes may still be saving.
  while [ "$again" = 1 ]; do
    again=0
    one=0
    wait "$pid" || one=$?
  done
  [ "$code" != 0 ] || code=$one
done
exit "$code"
