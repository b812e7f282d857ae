#!/usr/bin/env bash
# One search, or any other command of dvsnas that takes several processes, on all hosts of a Cloud TPU pod slice.
#
# Usage, with TPU_NAME and ZONE in the environment:
#   export TPU_NAME=my-tpu ZONE=us-central2-b
#   launch/tpu_pod.sh search --config=configs/cityscapes_search.py --workdir=/mnt/shared/runs/cityscapes
#   launch/tpu_pod.sh follow   # the log of the first host again, until the run ends; ends with its exit code
#   launch/tpu_pod.sh status   # of every host
#   launch/tpu_pod.sh stop     # saves and ends on all hosts; the same command goes on later
# First see that it works, with the smallest run (minutes, most of them to compile):
#   launch/tpu_pod.sh search --config=configs/smoke.py --workdir=/mnt/shared/runs/smoke
# The run does not hang on this terminal: the hosts go on where the connection is lost or Ctrl-C ends the log here.
# Every host keeps its log in REMOTE_DIR/runs/tpu_pod/log (that of the run before: log.old).
#
# The shared folder. --workdir must be a folder that all hosts see, under one path. Take a Filestore share (NFS); on all
# hosts, once, by `gcloud compute tpus tpu-vm ssh $TPU_NAME --zone=$ZONE --worker=all --command='...'`:
#   sudo apt-get install -y nfs-common; sudo mkdir -p /mnt/shared; sudo mount ADDRESS:/SHARE /mnt/shared
#   sudo install -d -m 1777 /mnt/shared/runs
# A bucket (`gcsfuse --implicit-dirs BUCKET /mnt/data`) is fine for the frames, which are only read, and not for
# --workdir: it neither appends to files nor renames folders in one step, as logs and checkpoints need.
# Copy a finished run with `gcloud storage cp -r`.
#
# Edit, by the environment:
#   TPU_NAME, ZONE  of the slice (needed); PROJECT, where it is not the default one of gcloud
#   REMOTE_DIR      the repository on every host (default: dvsnas_jax in the home folder), installed there by
#                   `python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[tpu]'`
#   REMOTE_ENV      more variables on the hosts, for example "DVSNAS_CITYSCAPES=/mnt/data/cityscapes"
#   MAX_RESTARTS    how often a host starts the command again after code 75 (default: 50), RESTART_SECONDS after it (10)
#   STOP_SECONDS    how long `stop` waits for a host to save (300)
# When the slice is preempted its hosts are gone: make it again, mount the folder and run the same command.
set -euo pipefail
if [ $# = 0 ]; then
  echo "usage: TPU_NAME=... ZONE=... launch/tpu_pod.sh COMMAND [OPTIONS] | follow | status | stop" >&2
  exit 2
fi
: "${TPU_NAME:?set TPU_NAME to the name of the slice}" "${ZONE:?set ZONE to the zone of the slice}"

on_hosts() { # WORKER SCRIPT: in the repository of the host, where `is_running` says whether a run is under way
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --worker="$1" \
    --command="cd $(printf '%q' "${REMOTE_DIR:-dvsnas_jax}") || exit 2
state=runs/tpu_pod
is_running() { [ -f \$state/pid ] && grep -qs tpu_pod/code \"/proc/\$(cat \$state/pid)/cmdline\"; }
$2"
}

follow() { # LINES of the log that are there already
  on_hosts 0 "[ -f \$state/pid ] || { echo 'error: nothing was started on this host' >&2; exit 2; }
tail -n $1 -s 0.3 -F --pid=\"\$(cat \$state/pid)\" \$state/log
exit \"\$(cat \$state/code 2>/dev/null || echo 1)\""
}

case $1 in
  follow)
    follow 100
    exit
    ;;
  status)
    on_hosts all "if is_running; then what='is running'
elif [ -f \$state/code ]; then what=\"ended with code \$(cat \$state/code)\"
else what='was not started, or was killed'; fi
echo \"\$(hostname): \$what; \$(tail -n 1 \$state/log 2>/dev/null)\""
    exit
    ;;
  stop)
    on_hosts all "is_running || { echo \"\$(hostname): nothing is running\"; exit 0; }
kill -TERM \"\$(cat \$state/pid)\"
for ((second = 0; second < ${STOP_SECONDS:-300}; second++)); do
  is_running || { echo \"\$(hostname): ended with code \$(cat \$state/code)\"; exit 0; }
  sleep 1
done
echo \"\$(hostname): did not end within ${STOP_SECONDS:-300} s, see its log\" >&2
exit 1"
    exit
    ;;
esac

words=$(printf '%q ' "$@")
# Every host runs this; after a stop all of them end with 75, so all of them start again, unless it was by `stop`.
until_done="stopped= again= child= code=0
trap 'stopped=1 again=1; kill -TERM \$child 2>/dev/null' TERM
for ((start = 0; start <= ${MAX_RESTARTS:-50}; start++)); do
  .venv/bin/dvsnas $words &
  child=\$!
  wait \$child
  code=\$?
  while [ \"\$again\" ]; do again=; wait \$child; code=\$?; done
  [ \$code = 75 ] && [ -z \"\$stopped\" ] || break
  sleep ${RESTART_SECONDS:-10} & wait \$!
  [ -z \"\$stopped\" ] || break
done
echo \$code >runs/tpu_pod/code"
on_hosts all "is_running && { echo \"error: \$(hostname): a run is under way here; follow or stop it first\" >&2; exit 2; }
mkdir -p \$state && rm -f \$state/code || exit 2
[ ! -f \$state/log ] || mv \$state/log \$state/log.old
export DVSNAS_TPU_POD=1 ${REMOTE_ENV:-}
setsid nohup bash -c $(printf '%q' "$until_done") >\$state/log 2>&1 </dev/null &
echo \$! >\$state/pid"
echo "started on all hosts; Ctrl-C ends only this log (again: $0 follow; to end the run: $0 stop)"
follow +1
