#!/usr/bin/env bash
# Measures one GPU in at most 8 minutes: kernels, a step of the supernet, a search, static networks, exported programs.
# It needs JAX with CUDA, Flax, Optax, Orbax and chex: neither TensorFlow nor ml_collections, no data set, no installation.
# Usage: launch/gpu_check.sh [options for `dvsnas bench accelerator`], for example --only=kernels,search or --minutes=4
# What is done is kept in runs/gpu_check.json, a table beside it (--output=FILE.json: elsewhere); started again, it does
# the rest. Code 75: the time was over, start it again. --tiny: small sizes, for trying it on a CPU.
# PYTHON=/path/to/python takes another Python than .venv's or python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
case " $*" in *" --output"*) ;; *) set -- --output=runs/gpu_check.json "$@" ;; esac
exec "$python" -m dvsnas_jax bench accelerator "$@"
