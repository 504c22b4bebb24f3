#!/usr/bin/env bash
# Compiles the device images that the binary holds (kernels/images) and checks them. Needs x86-64 Linux, a C++ compiler, python3 with pip
# and, the first time, the network.
#
#   scripts/cuda.sh              bring the compiler: about 250 MB of packages, pinned by version and SHA-256 in cuda.txt, into target/cuda
#   scripts/cuda.sh --compile    compile kernels/src/cuda/kernels.cu into kernels/images, with the hashes of its sources
#   scripts/cuda.sh --update     write kernels/images/resources.tsv from the images: registers, shared memory and occupancy of every kernel
#   scripts/cuda.sh --check      fail where an image is not what the sources compile to, where a kernel spills, uses local memory or takes
#                                more than resources.tsv allows, and where one has not the instructions that it was written for
set -euo pipefail
cd "$(dirname "$0")/.."
tools=target/cuda

fail() {
    printf 'scripts/cuda.sh: %s\n' "$*" >&2
    exit 1
}

case ${1:-} in
-h | --help)
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit
    ;;
'' | --compile | --update | --check) ;;
*) fail "unexpected argument \`$1\`; it takes --compile, --update, --check or none" ;;
esac
[ $# -le 1 ] || fail "unexpected argument \`$2\`; it takes one"
[ "$(uname -sm)" = "Linux x86_64" ] || fail "the packages are pinned for x86-64 Linux, and this is $(uname -sm); compile on such a machine"
command -v python3 >/dev/null || fail "python3 is missing; install it"
command -v g++ >/dev/null || fail "g++ is missing; nvcc needs it to read sources (the package g++)"
if ! cmp -s scripts/cuda.txt "$tools/installed.txt"; then
    python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing; install it (python3 -m ensurepip, or the package python3-pip)"
    rm -rf "$tools"
    mkdir -p "$tools"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --require-hashes \
        --only-binary :all: --target "$tools" -r scripts/cuda.txt || fail "pip could not install scripts/cuda.txt; check the network"
    cp scripts/cuda.txt "$tools/installed.txt"
fi
[ $# -eq 0 ] || exec python3 scripts/cuda.py "$1" "$tools/nvidia"
