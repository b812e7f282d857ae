#!/usr/bin/env bash
# Installs into .venv (made if there is none), then lint, type check and tests.
# Usage: launch/test.sh [options for pytest], for example -m slow
# DVSNAS_EXTRAS=test,parity installs PyTorch, too, to compare with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
install_into_venv ".[${DVSNAS_EXTRAS:-test}]"
.venv/bin/ruff check .
.venv/bin/mypy dvsnas_jax
.venv/bin/python -m pytest -q "$@"
