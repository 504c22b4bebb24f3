#!/usr/bin/env bash
# Loads exported models in transformers and llama.cpp and compares what they compute with Espalier: a pruned llama, a pruned gpt2 and
# every fixture that can be exported. Needs a Rust toolchain, Python 3.11 on x86-64 Linux (PYTHON names it; python3 by default) and, the
# first time, the network.
#
#   scripts/check-exports.sh [--prepare]     --prepare: bring the packages, compare nothing
#
# The packages (about 300 MB, pinned by version and SHA-256 in check-exports.txt) go into target/exports-venv. transformers runs there with
# Flax: PyTorch from PyPI is 900 MB and wants gigabytes of CUDA libraries even where there is no GPU. llama.cpp comes as xllamacpp, wheels
# of the same library: llama-cpp-python is a source package that compiles for many minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=target/exports-venv

fail() {
    printf 'scripts/check-exports.sh: %s\n' "$*" >&2
    exit 1
}

# shellcheck source=scripts/python-venv.sh
. scripts/python-venv.sh

only_prepare 10 "${1:-}"
python_venv check-exports "$venv"
[ -z "$prepare" ] || exit 0
log=target/check-exports.log
cargo test --quiet -p espalier --test exports -- --ignored
"$venv/bin/python" scripts/check_exports.py target/exports tests/parity 2>"$log" || {
    status=$?
    tail -n 20 "$log" >&2
    fail "exports differ (exit status $status); the programs' own messages are in $log"
}
