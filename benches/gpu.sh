#!/usr/bin/env bash
# Measures the CUDA engine in one go, on a machine with a GPU, a driver and python3, without network or Rust toolchain: correctness first,
# then ceilings, kernels at the shapes of benches/cuda_cases.txt (beside PyTorch and so cuBLAS, where python3 has torch), then models.
# All figures go to one JSON file; a table is printed. It takes 8 minutes at most.
#
#   benches/gpu.sh --prepare [TARGET]   on the build machine: builds and collects what is needed in target/gpu (64 MiB at most); TARGET as
#                                       rustc knows it, such as aarch64-unknown-linux-gnu, for another machine than this
#   benches/gpu.sh [--out FILE]         on the GPU machine, where target/gpu is: measures; results in target/gpu/results.json or FILE
#   benches/gpu.sh --dry-run            without a GPU: the same steps with small shapes on the emulator, to test this script
#   benches/gpu.sh --check              --prepare with the profile dev, which the tests have, and --dry-run, in target/gpu-check; and whether
#                                       the launches are those that scripts/cuda_paper.py computes with
#
# target/gpu may be copied anywhere; it holds this script as well.
set -euo pipefail
called_in=$PWD
cd "$(dirname "$0")"
[ -d bin ] && folder=$PWD || folder=$(cd .. && pwd)/target/gpu

fail() {
    printf 'benches/gpu.sh: %s\n' "$*" >&2
    exit 1
}

# prepare [TARGET]; with `dev` in that profile.
dev=
prepare() {
    local target=${1:-} strip=strip release=(--release) bench=()
    [ -z "$dev" ] || release=() bench=(--profile dev)
    cd ..
    [ -f Cargo.toml ] || fail "--prepare needs the sources; run it in the repository"
    local flags=()
    if [ -n "$target" ]; then
        flags=(--target "$target")
        strip=${target/-unknown/}-strip
        # Cargo would take this machine's linker.
        local linker=CARGO_TARGET_${target^^}_LINKER
        linker=${linker//-/_}
        [ -n "${!linker:-}" ] || export "$linker=${target/-unknown/}-gcc"
    fi
    rm -rf "$folder"
    mkdir -p "$folder/bin" "$folder/peers"
    # built NAME CARGO-ARGUMENTS: the path of the executable that cargo says it made.
    built() {
        local name=$1 path
        shift
        path=$(cargo "$@" "${flags[@]}" --message-format=json-render-diagnostics | python3 -c '
import json, sys
made = [json.loads(line) for line in sys.stdin if line.startswith("{")]
paths = [m["executable"] for m in made if m.get("executable") and m["target"]["name"] == sys.argv[1]]
print(paths[-1] if paths else "")' "$name")
        [ -n "$path" ] || fail "cargo made no executable $name"
        cp "$path" "$folder/bin/$name"
        "$strip" --strip-unneeded "$folder/bin/$name" 2>/dev/null || echo "benches/gpu.sh: $name stays unstripped: $strip is missing or knows it not" >&2
    }
    local kernels=(-p espalier-kernels --features cuda)
    built espalier build "${release[@]}" --bin espalier
    built cuda_kernels bench "${bench[@]}" --no-run "${kernels[@]}" --bench cuda_kernels
    built cuda_conformance test "${release[@]}" --no-run "${kernels[@]}" --test cuda_conformance
    built cuda_products test "${release[@]}" --no-run "${kernels[@]}" --test cuda_products
    built cuda test "${release[@]}" --no-run --test cuda
    cp -r tests/parity "$folder/parity"
    cp benches/gpu.sh benches/gpu/*.py benches/cuda_cases.txt "$folder/"
    cp benches/peers/gpu_torch.py "$folder/peers/"
    git rev-parse HEAD >"$folder/commit.txt" 2>/dev/null || echo unknown >"$folder/commit.txt"
    local bytes
    bytes=$(du -sb "$folder" | cut -f1)
    [ -n "$dev" ] || [ "$bytes" -le $((64 << 20)) ] || fail "$folder takes $bytes bytes, more than 64 MiB; strip the executables"
    echo "$folder: $bytes bytes"
}

case ${1:-} in
-h | --help)
    sed -n '2,15s/^# \{0,1\}//p' "$(basename "$0")"
    exit
    ;;
--prepare)
    [ $# -le 2 ] || fail "unexpected argument \`$3\`"
    prepare "${2:-}"
    exit
    ;;
--check)
    [ $# -eq 1 ] || fail "unexpected argument \`$2\`"
    folder=$(cd .. && pwd)/target/gpu-check dev=true
    (prepare)
    set -- --dry-run
    checked=true
    ;;
esac
command -v python3 >/dev/null || fail "python3 is missing; install it (no packages are needed)"
[ -x "$folder/bin/espalier" ] || fail "$folder holds no programs; run benches/gpu.sh --prepare on the build machine and bring that folder"
arguments=()
dry_run=
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry_run=true ;;
    --out | --out=*)
        if [ "$1" = --out ]; then
            [ $# -gt 1 ] || fail "--out needs a file"
            shift
        fi
        out=${1#--out=}
        [ -n "$out" ] || fail "--out needs a file"
        # It was meant where the script was called.
        [[ $out = /* ]] || out=$called_in/$out
        arguments+=(--out "$out")
        ;;
    *) fail "unexpected argument \`$1\`; it takes --out FILE and --dry-run" ;;
    esac
    shift
done
if [ -n "$dry_run" ]; then
    arguments+=(--dry-run)
    [ -x ../scripts/emulator.sh ] || fail "--dry-run needs the emulator, and so the sources; run it in the repository"
    LD_LIBRARY_PATH=$(../scripts/emulator.sh)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
fi
python3 "$folder/measure.py" "${arguments[@]}"
[ -z "${checked:-}" ] || python3 ../scripts/cuda_paper.py --compare "$folder/results.json"
