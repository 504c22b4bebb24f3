#!/usr/bin/env bash
# Brings ONNX Runtime's shared library into target/onnxruntime, where Espalier finds it: from the package on PyPI, pinned by version and
# SHA-256. What is there with the right hash is not fetched again. Needs python3 with pip, sha256sum and the network (20 MB).
#
#   scripts/onnxruntime.sh [--target ARCH]     ARCH: x86_64 or aarch64; this machine's by default, another's goes into
#                                              target/onnxruntime/ARCH
#
# Licence: MIT.
set -euo pipefail
cd "$(dirname "$0")/.."
version=1.31.1

fail() {
    printf 'scripts/onnxruntime.sh: %s\n' "$*" >&2
    exit 1
}

case ${1:-} in
-h | --help)
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit
    ;;
'') arch=$(uname -m) ;;
--target)
    [ $# -gt 1 ] || fail "--target needs an architecture, x86_64 or aarch64"
    arch=$2
    ;;
*) fail "unexpected argument \`$1\`; it takes --target ARCH or none" ;;
esac
case $arch in
x86_64)
    wheel_hash=5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f
    library_hash=fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3
    ;;
aarch64)
    wheel_hash=da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3
    library_hash=8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467
    ;;
*) fail "there is no package for $arch; build ONNX Runtime and name its library in ORT_DYLIB_PATH" ;;
esac
folder=target/onnxruntime
[ "$arch" = "$(uname -m)" ] || folder=$folder/$arch
library=$folder/libonnxruntime.so

# has FILE SHA256: whether the file is there as it should be.
has() {
    [ -f "$1" ] && [ "$(sha256sum <"$1" | cut -d' ' -f1)" = "$2" ]
}

command -v sha256sum >/dev/null || fail "sha256sum is missing; install coreutils"
if ! has "$library" "$library_hash"; then
    command -v python3 >/dev/null || fail "python3 is missing; install it"
    python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing; install it (python3 -m ensurepip, or the package python3-pip)"
    mkdir -p "$folder"
    work=$(mktemp -d "$folder/.work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --implementation cp --python-version 3.11 \
        --platform "manylinux_2_28_$arch" --dest "$work" "onnxruntime==$version" ||
        fail "pip could not bring onnxruntime==$version; check the network (pip config list names the index that it asks)"
    wheel=("$work"/*.whl)
    has "${wheel[0]}" "$wheel_hash" || fail "the package that pip brought has not the SHA-256 $wheel_hash that is pinned here; nothing of it was kept"
    python3 -m zipfile -e "${wheel[0]}" "$work/unpacked"
    mv "$work/unpacked/onnxruntime/capi/libonnxruntime.so.$version" "$work/library" || fail "the package has no libonnxruntime.so.$version"
    has "$work/library" "$library_hash" || fail "the library has not the SHA-256 $library_hash that is pinned here; nothing of it was kept"
    mv "$work/library" "$library"
fi
echo "$library"
