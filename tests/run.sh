#!/usr/bin/env bash
# The tests, in run_all.sh's environment: bash tests/run.sh [pytest options], in minutes: all that a change can break.
# bash tests/run.sh all [pytest options] adds those marked `slow`, see .pytest.ini; a landing runs them all.
# Benchmarks: bash tests/run.sh bench [words of a name]; everything that needs a GPU: bash tests/run.sh gpu
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/run_all.sh" --install
cd "$root"
if [ "${1:-}" = bench ] || [ "${1:-}" = gpu ]; then
    script=tests/$1.py
    shift
    exec .venv/bin/python "$script" "$@"
fi
tier=(-m "not slow")
if [ "${1:-}" = all ]; then
    tier=()
    shift
fi
export OMP_NUM_THREADS=1 # a core for every worker
exec .venv/bin/python -m pytest tests -q -rs --durations=10 -n auto --dist loadfile --no-loadscope-reorder "${tier[@]}" "$@"
