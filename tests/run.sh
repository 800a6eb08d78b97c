#!/usr/bin/env bash
# Runs the tests in .venv, which it makes when it is not there, on all cores.
#   bash tests/run.sh [--all] [pytest arguments]
# Without --all the slow ones are left out: whole matrices of engines, fuzzing at full count, journeys, the demo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/venv.sh
source launch/venv.sh
make_venv requirements-dev.txt
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest --numprocesses=logical --maxprocesses=8 --dist=loadgroup "$@"
