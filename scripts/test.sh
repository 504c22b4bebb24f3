#!/usr/bin/env bash
# The tests: brings ONNX Runtime's library for those that need it (20 MB, by python3 with pip and the network) and runs `cargo test`. Where
# the library cannot be brought, its tests say so and are skipped; with CI=true they fail.
#
#   scripts/test.sh [ARGUMENTS]     arguments of `cargo test` behind --workspace
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
-h | --help)
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac
if ! scripts/onnxruntime.sh; then
    [ "${CI:-}" != true ] || exit 1
    echo "scripts/test.sh: ONNX Runtime's library is not there: tests that need it are skipped" >&2
fi
exec cargo test --workspace "$@"
