#!/usr/bin/env bash
# Builds the program for 64-bit ARM (Jetson, DGX Spark) and runs the tests of the model and kernel crates, those on the CUDA emulator
# among them, under qemu. Needs a Rust toolchain with rustup and, on a Debian system, the packages gcc-aarch64-linux-gnu,
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
