#!/usr/bin/env bash
# Installs into .venv (made if there is none) and searches a cell on the embedded clips.
# Usage: launch/quickstart.sh [options for `dvsnas search`], for example --config.search.steps=20
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
install_into_venv .
workdir=runs/quickstart
.venv/bin/dvsnas search --config=configs/synthetic.py --workdir="$workdir" "$@"
echo "report: $PWD/$workdir/report.html"
echo "cell:   $PWD/$workdir/best_genotype.json (draw it: .venv/bin/dvsnas show $workdir/best_genotype.json --output=cell.png)"
