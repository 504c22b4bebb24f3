#!/usr/bin/env bash
# Compares graphs of other programs with the programs themselves: a CNN of PyTorch and the MiniLM encoder of sentence-transformers, as Espalier
# runs them in ONNX Runtime and as PyTorch does. Needs a Rust toolchain, Python 3.11 on x86-64 Linux (PYTHON names it; python3 by default),
# target/models/minilm (scripts/models.sh), target/onnxruntime (scripts/onnxruntime.sh), the recordings of uestc/ in the folder that
# ESPALIER_DATA names for the part that reads them and, the first time, the network.
#
#   scripts/check-foreign.sh [--prepare|--train]     --prepare: bring the packages, compare nothing
#                                                    --train: first train the CNN, export both and write tests/data/foreign anew
#
# The packages (3 GB, pinned by version and SHA-256 in check-foreign.txt) go into target/foreign-venv: PyTorch from PyPI brings the CUDA
# libraries that it is linked with, though nothing here uses a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=target/foreign-venv
folder=tests/data/foreign
models=target/models/minilm

fail() {
    printf 'scripts/check-foreign.sh: %s\n' "$*" >&2
    exit 1
}

# shellcheck source=scripts/python-venv.sh
. scripts/python-venv.sh

train=
if [ "${1:-}" = --train ]; then
    train=--train
    shift
fi
only_prepare 13 "${1:-}"
python_venv check-foreign "$venv"
[ -z "$prepare" ] || exit 0
[ -f "$models/model.safetensors" ] || fail "$models is not there; bring it with scripts/models.sh minilm"
data=()
if [ -n "${ESPALIER_DATA:-}" ]; then
    data=("$ESPALIER_DATA")
else
    [ -z "$train" ] || fail "there are no recordings to train on; name their folder in ESPALIER_DATA"
    echo "ESPALIER_DATA names no folder: nothing is compared on recordings" >&2
fi
log=target/check-foreign.log
"$venv/bin/python" -B scripts/check_foreign.py "$folder" "$models" "${data[@]}" $train 2>"$log" || {
    status=$?
    tail -n 20 "$log" >&2
    fail "PyTorch differs from $folder (exit status $status); the programs' own messages are in $log"
}
cargo test --quiet -p espalier --test foreign -- --nocapture
