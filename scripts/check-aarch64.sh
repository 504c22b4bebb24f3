#!/usr/bin/env bash
# Builds the program for 64-bit ARM (Jetson, DGX Spark) and runs under qemu: the tests of the model, kernel and runtime crates, those on the
# CUDA emulator among them, the comparison with PyTorch, and the tests with ONNX Runtime. Needs a Rust toolchain with rustup, python3 with
# pip and, on a Debian system, the packages gcc-aarch64-linux-gnu, g++-aarch64-linux-gnu, libc6-dev-arm64-cross,
# libstdc++-12-dev-arm64-cross and qemu-user; with CI=true they are installed where they are missing and the user may.
#
#   scripts/check-aarch64.sh [--prepare|--all]     --prepare: bring what is needed, run nothing
#                                                  --all: with what only repeats the rest and takes as long as all of it: the CUDA
#                                                  operations on a stricter emulator, the products in every plan, those of the CPU with
#                                                  other numbers of threads, a layer that is run again and again, and every graph
#                                                  in ONNX Runtime
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
packages=(gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross libstdc++-12-dev-arm64-cross qemu-user)
# Where Debian's cross packages have the C library.
sysroot=/usr/aarch64-linux-gnu

fail() {
    printf 'scripts/check-aarch64.sh: %s\n' "$*" >&2
    exit 1
}

case ${1:-} in
-h | --help)
    sed -n '2,12s/^# \{0,1\}//p' "$0"
    exit
    ;;
'' | --prepare | --all) ;;
*) fail "unexpected argument \`$1\`; it takes --prepare, --all or none" ;;
esac
there() {
    command -v aarch64-linux-gnu-gcc >/dev/null && command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null
}
if ! there && [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "${packages[@]}"
fi
there || fail "the cross compiler or qemu is missing; install the packages ${packages[*]}"
command -v rustup >/dev/null || fail "rustup is missing; install a Rust toolchain by rustup, or one that has the target $target"
rustup target list --installed | grep -qx "$target" || rustup target add "$target"
[ "${1:-}" != --prepare ] || exit 0

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# Built with the tests that are run last, whose crates have other features than the program's alone: all of them would be compiled twice.
program=(--target "$target" -p espalier --test parity --test ort)
cargo test --no-run "${program[@]}"
binary=${CARGO_TARGET_DIR:-target}/$target/debug/espalier
version=$(qemu-aarch64 -L "$sysroot" "$binary" --version) || fail "$binary does not start under qemu"
echo "$binary: $version"
# ONNX Runtime reads the processor's kind from /proc/cpuinfo, in which qemu shows the host's, and does not survive another kind's: a system
# root with one of an ARM processor stands before the host's files.
ORT_DYLIB_PATH=$PWD/$(scripts/onnxruntime.sh --target aarch64)
root=$(realpath -m "${CARGO_TARGET_DIR:-target}")/aarch64-root
mkdir -p "$root/proc"
for entry in "$sysroot"/*; do
    ln -sfn "$entry" "$root/${entry##*/}"
done
printf '%s\n' 'processor	: 0' 'BogoMIPS	: 100.00' 'Features	: fp asimd' 'CPU implementer	: 0x41' 'CPU architecture: 8' 'CPU variant	: 0x0' \
    'CPU part	: 0xd08' 'CPU revision	: 3' '' >"$root/proc/cpuinfo"
runner="qemu-aarch64 -L $root"
# The tests build the emulator and stand-in libraries by CXX and CC, and start the program by ESPALIER_RUNNER.
export ORT_DYLIB_PATH CXX=aarch64-linux-gnu-g++ CC=aarch64-linux-gnu-gcc ESPALIER_RUNNER=$runner
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$runner
RUNNER=$runner scripts/emulator.sh --test
skip=(--skip cuda_product --skip where_nothing_runs_before --skip on_one_thread --skip on_five_threads --skip a_warm_layer)
[ "${1:-}" != --all ] || skip=()
cargo test --tests --target "$target" -p espalier-models -p espalier-kernels -p espalier-runtime --features espalier-kernels/cuda,espalier-runtime/ort \
    -- "${skip[@]}"
# What a process holds under qemu is qemu's too, which one test would count.
skip=(--skip onnx_runtime_computes)
[ "${1:-}" != --all ] || skip=()
cargo test "${program[@]}" -- --skip a_bench_says_what_it_has_timed "${skip[@]}"
