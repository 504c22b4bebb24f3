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

prepare=
case ${1:-} in
-h | --help)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit
    ;;
--prepare) prepare=true ;;
'') ;;
*) fail "unexpected argument \`$1\`; it takes --prepare or none" ;;
esac
python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "$python is missing; install Python 3.11"
"$python" -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" ||
    fail "$python is not Python 3.11, for which the packages are pinned; give another in PYTHON"
command -v cargo >/dev/null || fail "cargo is missing; install a Rust toolchain"
if ! cmp -s scripts/check-onnx.txt "$venv/installed.txt"; then
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail "$python cannot make a virtual environment; install python3.11-venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r scripts/check-onnx.txt ||
        fail "pip could not install scripts/check-onnx.txt; check the network"
    cp scripts/check-onnx.txt "$venv/installed.txt"
fi
[ -z "$prepare" ] || exit 0
cargo test --quiet -p espalier --test ort -- --ignored
"$venv/bin/python" scripts/check_onnx.py target/onnx-exports tests/parity || fail "graphs differ (exit status $?)"
