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

prepare=
case ${1:-} in
-h | --help)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
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
if ! cmp -s scripts/check-exports.txt "$venv/installed.txt"; then
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail "$python cannot make a virtual environment; install python3.11-venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r scripts/check-exports.txt ||
        fail "pip could not install scripts/check-exports.txt; check the network"
    cp scripts/check-exports.txt "$venv/installed.txt"
fi
[ -z "$prepare" ] || exit 0
log=target/check-exports.log
cargo test --quiet -p espalier --test exports -- --ignored
"$venv/bin/python" scripts/check_exports.py target/exports tests/parity 2>"$log" || {
    status=$?
    tail -n 20 "$log" >&2
    fail "exports differ (exit status $status); the programs' own messages are in $log"
}
