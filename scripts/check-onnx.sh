#!/usr/bin/env bash
# Runs exported ONNX graphs in ONNX Runtime and compares what they compute with Espalier: every fixture dense, pruned and in 16 bits, and a
# signal model trained on simulated machines; with and without a cache of keys and values, with the weights outside and inside. Needs a
# Rust toolchain, Python 3.11 on x86-64 Linux (PYTHON names it; python3 by default) and, the first time, the network.
#
#   scripts/check-onnx.sh [--prepare]     --prepare: bring the packages, compare nothing
#
# The packages (about 60 MB, pinned by version and SHA-256 in check-onnx.txt) go into target/onnx-venv.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=target/onnx-venv

fail() {
    printf 'scripts/check-onnx.sh: %s\n' "$*" >&2
    exit 1
}

# shellcheck source=scripts/python-venv.sh
. scripts/python-venv.sh

only_prepare 8 "${1:-}"
python_venv check-onnx "$venv"
[ -z "$prepare" ] || exit 0
cargo test --quiet -p espalier --test ort -- --ignored
"$venv/bin/python" scripts/check_onnx.py target/onnx-exports tests/parity || fail "graphs differ (exit status $?)"
