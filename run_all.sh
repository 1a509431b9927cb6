#!/usr/bin/env bash
# From a fresh clone to a submission: environment, data, training, ensemble, leaderboard, report.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash run_all.sh [options] [-- Snakemake options]

  --data DIR        data folder in the competition's layout; without it a synthetic sample is made
  --profile NAME    notebooks/profiles/NAME.yaml: sample (default), smoke, ablation, baseline, overnight, or your own
  --dry-run         show what would run
  --jobs N          steps at the same time (default: the profile's)
  --force           run everything again, also after an edit in utils/
  --skip-bad        leave out images with errors (data_report.csv in the run's folder lists them); test images
                    among them keep their rows in the submission, with empty masks
  --executor NAME   let Snakemake hand the steps to a cluster, such as slurm
  --install         only make .venv and install requirements.txt
  --help            this text

The same command goes on where an interrupted run stopped. A closed terminal or a lost connection stops a run, unless
it was started in tmux, or as: nohup bash run_all.sh … > run.log 2>&1 &
A step that fails is tried once more. Then the others go on, and the submission is made without it: it is called PARTIAL,
the exit status is 1, and the next start tries again what failed and replaces it.
Results: outputs/<run>/ and submissions/<run>.csv, where <run> is the profile's name, followed by the data folder's name
with --data.
TEXT
}

fail() {
    printf 'run_all.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
caller=$PWD
python=$root/.venv/bin/python
options=()
install_only=no

while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) usage && exit 0 ;;
    --install) install_only=yes ;;
    --dry-run | --force | --skip-bad) options+=("$1") ;;
    --data | --profile | --jobs | --executor)
        [ $# -ge 2 ] && [ -n "$2" ] || fail "$1 needs a value" 2
        options+=("$1" "$2")
        shift
        ;;
    --data=?* | --profile=?* | --jobs=?* | --executor=?*) options+=("$1") ;;
    --) break ;;
    *)
        usage >&2
        printf '\n' >&2
        fail "unknown option: $1" 2
        ;;
    esac
    shift
done

make_environment() {
    local found=
    for candidate in python3.13 python3.12 python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            found=$candidate
            break
        fi
    done
    [ -n "$found" ] || fail "Python 3.11 or newer is needed; found $(python3 --version 2>&1 || true). Install it and start again."
    echo "making .venv with $("$found" --version)"
    "$found" -m venv --clear "$root/.venv" ||
        fail "$found can't make a virtual environment; on Debian and Ubuntu: apt install python3-venv"
}

digest() { "$python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1"; }

installed() {
    "$python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
        [ "$(cat "$stamp" 2>/dev/null)" = "$(digest "$root/requirements.txt")" ]
}

install() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || make_environment
    "$python" -c 'import pip' 2>/dev/null || "$python" -m ensurepip >/dev/null # uv's environments come without
    local wanted
    wanted=$(digest "$root/requirements.txt")
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing requirements.txt (several minutes the first time)"
        "$python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements.txt" ||
            fail "installing requirements.txt failed (see above); the same command tries again"
        printf '%s\n' "$wanted" >"$stamp" # last: an interrupted installation is done again
    fi
}

# Two first starts at once: the second waits until the first has installed. The lock ends with whoever holds it.
install_once() {
    installed && return
    exec 9>"$root/.venv.lock"
    python3 -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' || true # without a Python, install says so
    installed || install
    exec 9>&-
}

stamp=$root/.venv/requirements.sha256
install_once
mkdir -p "$root/outputs/try" # papermill wants the folder of its output to exist
[ "$install_only" = no ] || exit 0
cd "$root" # so that Python finds utils; a relative --data still starts where the caller is
exec "$python" -m utils.pipeline --caller "$caller" ${options[@]+"${options[@]}"} "$@"
