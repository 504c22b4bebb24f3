#!/usr/bin/env bash
# Builds the emulator: a stand-in for the CUDA driver that runs the kernels of kernels/src/cuda on the processor, for tests on machines
# without a GPU. Prints the folder that holds libcuda.so; put it into LD_LIBRARY_PATH, or load the library by its path before anything asks
# for libcuda.so. Builds again only what has changed. Needs g++ 12 or later on Linux, x86-64 or aarch64.
#
#   scripts/emulator.sh [--test] [--out FOLDER]     --test: builds and runs the emulator's own tests
#                                                   --out: where to build; by default target/emulator, with the machine's name
#                                                   behind it where CXX is a cross compiler
#
# CXX names the compiler; the tests of a cross compiler (aarch64-linux-gnu-g++) need the runner in RUNNER (qemu-aarch64 -L SYSROOT).
# ESPALIER_EMULATOR sets up the device and its faults; kernels/emulator/settings.hpp lists the words.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'scripts/emulator.sh: %s\n' "$*" >&2
    exit 1
}

out=
test=
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help)
        sed -n '2,11s/^# \{0,1\}//p' "$0"
        exit
        ;;
    --test) test=true ;;
    --out)
        [ $# -gt 1 ] || fail "--out needs a folder"
        out=$2
        shift
        ;;
    *) fail "unexpected argument \`$1\`; it takes --test and --out FOLDER" ;;
    esac
    shift
done
compiler=${CXX:-g++}
command -v "$compiler" >/dev/null || fail "$compiler is missing; install g++ (Debian: apt install g++) or name a C++20 compiler in CXX"
machine=$("$compiler" -dumpmachine) || fail "$compiler does not say what it compiles for; a g++ of version 12 or later is needed"
if [ -z "$out" ]; then
    out=target/emulator
    [ "${machine%%-*}" = "$(uname -m)" ] || out+=-${machine%%-*}
fi
flags=(-std=c++20 -O3 -g1 -fPIC -pthread -fvisibility=hidden -fno-strict-aliasing -fno-math-errno -ffp-contract=fast -fstack-clash-protection
    -Wall -Wextra -Wno-restrict -Wno-missing-field-initializers -Wno-unknown-pragmas -Wno-psabi -Ikernels/emulator -Ikernels/src/cuda)
case $machine in
x86_64*) if grep -qw fma /proc/cpuinfo && grep -qw avx2 /proc/cpuinfo; then flags+=(-march=x86-64-v3); fi ;;
# Stacks end at a guard of one page, while the compiler probes for one of 64 KiB here, and would step over it.
aarch64*) flags+=(--param=stack-clash-protection-guard-size=12) ;;
esac
version=$("$compiler" --version | head -1)

mkdir -p "$out/objects"
exec 9>"$out/lock"
flock 9 # tests ask for the library from several processes at once

# hash FILE...: of the compiler, its flags and the files.
hash() {
    {
        printf '%s\n' "$version" "$machine" "${flags[@]}"
        sha256sum "$@"
    } | sha256sum | cut -d' ' -f1
}

# compile NAME SOURCE HASH: makes objects/NAME.o unless it was made from this hash.
compile() {
    local object=$out/objects/$1.o
    if [ ! -f "$object" ] || [ "$(cat "$object.hash" 2>/dev/null)" != "$3" ]; then
        rm -f "$object.hash"
        "$compiler" "${flags[@]}" -x c++ -c "$2" -o "$object" || return 1
        printf '%s' "$3" >"$object.hash"
    fi
}

headers=(kernels/emulator/*.hpp)
kernel_sources=(kernels/src/cuda/*.cu kernels/src/cuda/*.cuh)
emulator_hash=$(hash "${headers[@]}")
jobs=()
objects=()
# start NAME SOURCE FILE...: compiles in the background, two at a time.
start() {
    local name=$1 source=$2
    shift 2
    objects+=("$out/objects/$name.o")
    if [ ${#jobs[@]} -ge 2 ]; then
        wait "${jobs[0]}" || fail "the emulator does not compile; the compiler's messages say where"
        jobs=("${jobs[@]:1}")
    fi
    compile "$name" "$source" "$(hash "$source" "$@")-$emulator_hash" &
    jobs+=($!)
}
finish() {
    local job
    for job in "${jobs[@]}"; do
        wait "$job" || fail "the emulator does not compile; the compiler's messages say where"
    done
    jobs=()
}

[ -n "$test" ] || start kernels kernels/src/cuda/kernels.cu "${kernel_sources[@]}"
for source in kernels/emulator/*.cpp; do
    name=$(basename "$source" .cpp)
    [[ $name = test* ]] || start "$name" "$source" "${headers[@]}"
done
if [ -n "$test" ]; then
    library=("${objects[@]}") # the emulator without the program's kernels
    start test_kernels kernels/emulator/test.cu kernels/src/cuda/prelude.cuh
    start test kernels/emulator/test.cpp
    start test_driver kernels/emulator/test_driver.cpp
    finish
    "$compiler" -o "$out/test" "$out"/objects/test{,_driver,_kernels}.o "${library[@]}" -pthread -ldl
    flock -u 9
    ${RUNNER:-} "$out/test" >&2
    exit
fi
finish
built=$(sha256sum "${objects[@]}" | sha256sum)
if [ ! -f "$out/libcuda.so" ] || [ "$(cat "$out/libcuda.hash" 2>/dev/null)" != "$built" ]; then
    # Only the driver's functions are visible, and its own definitions win over the program's.
    "$compiler" -shared -Wl,-soname,libcuda.so -Wl,-Bsymbolic -Wl,-z,defs -Wl,--exclude-libs,ALL -static-libstdc++ -static-libgcc \
        -o "$out/libcuda.so.new" "${objects[@]}" -pthread -ldl
    mv "$out/libcuda.so.new" "$out/libcuda.so"
    ln -sf libcuda.so "$out/libcuda.so.1"
    printf '%s' "$built" >"$out/libcuda.hash"
fi
cd "$out" && pwd
