#!/usr/bin/env bash
# Installs into .venv (made if there is none), then lint, type check and tests.
# Usage: launch/test.sh [options for pytest], for example -m slow
# Without options the tests run in two processes, a file in one, beside the type check; with options in one process, so
# that slow ones time well.
# DVSNAS_EXTRAS=test,parity,pretrained installs PyTorch, too, to compare with, and weights from ImageNet.
# One test opens the report in Chromium. Root gets it from apt-get; without any, that test is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
install_into_venv ".[${DVSNAS_EXTRAS:-test}]"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null &&
  ! command -v chromium-headless-shell chromium chromium-browser google-chrome chrome >/dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium-headless-shell; } ||
    echo "no Chromium could be installed: the report is not opened in a browser" >&2
fi
.venv/bin/ruff check .
if [ $# = 0 ]; then
  types=$(mktemp)
  .venv/bin/mypy dvsnas_jax >"$types" 2>&1 &
  mypy=$!
  trap 'kill "$mypy" 2>/dev/null || true; rm -f "$types"' EXIT
  status=0
  # Files in the order of tests/conftest.py, the longest first: both processes end at about the same time.
  .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder || status=$?
  wait "$mypy" || status=$?
  cat "$types"
  exit "$status"
fi
.venv/bin/mypy dvsnas_jax
.venv/bin/python -m pytest -q "$@"
