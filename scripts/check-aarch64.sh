#!/usr/bin/env bash
# Builds the program for 64-bit ARM (Jetson, DGX Spark) and runs the tests of the model and kernel crates, those on the CUDA emulator
# among them, and those with ONNX Runtime under qemu. Needs a Rust toolchain with rustup and, on a Debian system, the packages gcc-aarch64-linux-gnu,
# g++-aarch64-linux-gnu, libc6-dev-arm64-cross, libstdc++-12-dev-arm64-cross and qemu-user; with CI=true they are installed where they are
# missing and the user may.
#
#   scripts/check-aarch64.sh [--build]     --build: build the program, run no tests
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
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit
    ;;
'' | --build) ;;
*) fail "unexpected argument \`$1\`; it takes --build or none" ;;
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

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L $sysroot"
cargo build --target "$target" -p espalier
binary=${CARGO_TARGET_DIR:-target}/$target/debug/espalier
version=$(qemu-aarch64 -L "$sysroot" "$binary" --version) || fail "$binary does not start under qemu"
echo "$binary: $version"
[ "${1:-}" != --build ] || exit 0
CXX=aarch64-linux-gnu-g++ RUNNER="qemu-aarch64 -L $sysroot" scripts/emulator.sh --test
# The tests build the emulator by the compiler that CXX names.
CXX=aarch64-linux-gnu-g++ cargo test --target "$target" -p espalier-models -p espalier-kernels --features espalier-kernels/cuda

# ONNX Runtime reads the processor's kind from /proc/cpuinfo, in which qemu shows the host's, and does not survive another kind's: a system
# root with one of an ARM processor stands before the host's files.
library=$PWD/$(scripts/onnxruntime.sh --target aarch64)
root=$(realpath -m "${CARGO_TARGET_DIR:-target}")/aarch64-root
mkdir -p "$root/proc"
for entry in "$sysroot"/*; do
    ln -sfn "$entry" "$root/${entry##*/}"
done
printf '%s\n' 'processor	: 0' 'BogoMIPS	: 100.00' 'Features	: fp asimd' 'CPU implementer	: 0x41' 'CPU architecture: 8' 'CPU variant	: 0x0' \
    'CPU part	: 0xd08' 'CPU revision	: 3' '' >"$root/proc/cpuinfo"
runner="qemu-aarch64 -L $root"
# Tests that start the program start it by ESPALIER_RUNNER. What a process holds under qemu is qemu's too, which one test would count.
ORT_DYLIB_PATH=$library CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$runner ESPALIER_RUNNER=$runner CC=aarch64-linux-gnu-gcc \
    cargo test --target "$target" -p espalier --test ort -- --skip a_bench_says_what_it_has_timed
ORT_DYLIB_PATH=$library CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$runner cargo test --target "$target" -p espalier-runtime --features ort --lib ort::
