#!/usr/bin/env bash
# What a build does whose CUDA kernels have changed since kernels/images was compiled, in a copy of the sources with a changed comment: it
# fails and says which file changed; with ESPALIER_CUDA_BUILD=1 it compiles them, and what it compiled is what a device loads. Needs git,
# the Rust toolchain, a C++ compiler, and nvcc, which scripts/cuda.sh brings.
set -euo pipefail
cd "$(dirname "$0")/.."
nvcc=$PWD/target/cuda/nvidia/cu13/bin/nvcc

fail() {
    printf 'scripts/check-build.sh: %s\n' "$*" >&2
    exit 1
}

case ${1:-} in
-h | --help)
    sed -n '2,4s/^# \{0,1\}//p' "$0"
    exit
    ;;
'') ;;
*) fail "unexpected argument \`$1\`; it takes none" ;;
esac
[ -x "$nvcc" ] || fail "$nvcc is missing; run scripts/cuda.sh"
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
# The registry's crates are there already.
export CARGO_TARGET_DIR
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")
command -v git >/dev/null || fail "git is missing; install it"
git ls-files -z --cached --others --exclude-standard | tar -c --null --files-from - --ignore-failed-read | tar -x -C "$copy"
emulator=$(scripts/emulator.sh)
cd "$copy"
changed=norm.cu
sed -i '1s/$/ Changed./' "kernels/src/cuda/$changed"

# refused SENTENCE VARIABLE...: a build fails, with these variables, and says so.
refused() {
    local sentence=$1 said
    shift
    if said=$(env "$@" cargo check -p espalier-kernels --features cuda 2>&1); then
        fail "a build with $* should have failed: $sentence"
    fi
    [[ $said = *"$sentence"* ]] || fail "a build with $* should have said \`$sentence\`, and said:"$'\n'"$said"
    echo "refused with $*: $sentence"
}
refused "$changed changed since they were compiled; run scripts/cuda.sh --compile" ESPALIER_CUDA_BUILD=
refused "ESPALIER_CUDA_BUILD is \`yes\`; it takes 1" ESPALIER_CUDA_BUILD=yes
refused "\"/no/nvcc\" cannot be run" ESPALIER_CUDA_BUILD=1 NVCC=/no/nvcc
# A distribution may have nvcc where cargo is.
mkdir "$copy/only"
ln -s "$(command -v cargo)" "$(command -v rustc)" "$copy/only"
refused "ESPALIER_CUDA_BUILD=1 needs nvcc" ESPALIER_CUDA_BUILD=1 NVCC= CUDA_HOME= "PATH=$copy/only"

# All architectures would take minutes; an older nvcc does not know all of them either.
cat >"$copy/nvcc" <<EOF
#!/bin/sh
[ "\$1" = --list-gpu-code ] && echo sm_87 || exec "$nvcc" "\$@"
EOF
chmod +x "$copy/nvcc"
said=$(LD_LIBRARY_PATH=$emulator ESPALIER_CUDA_BUILD=1 NVCC=$copy/nvcc \
    cargo test -p espalier-kernels --features cuda --test cuda_conformance -- --nocapture 2>&1) || fail "$said"
[[ $said =~ [0-9]+\ launches\ of\ [0-9]+\ kernels\ from\ [^$'\n']*"the image that nvcc"[^$'\n']* ]] || fail "another image was loaded:"$'\n'"$said"
echo "compiled: ${BASH_REMATCH[0]}"
