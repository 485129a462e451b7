#!/bin/sh
# Runs the kernels' tests with a build that checks addresses and undefined behaviour. Needs gcc with its sanitizers.
#   tests/kernels/sanitize.sh [what to run Python with] [arguments for pytest]
# Python itself leaks at exit, so leaks are not looked for. Output is not captured: a finding ends the process.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${1:-python}
[ $# -eq 0 ] || shift
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$root/gptcli" "$root/tests" "$root/pyproject.toml" "$copy"
rm -f "$copy"/gptcli/kernels/_native*
# Each matrix has memory of its own here (CHUNK_BYTES), so that reading past one is seen.
gcc -g -O1 -std=gnu11 -fvisibility=hidden -fno-math-errno -fno-trapping-math -pthread -fPIC -shared -DCHUNK_BYTES=0 \
    -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra \
    "$copy"/gptcli/kernels/*.c -o "$copy/gptcli/kernels/_native.so" -lm
cd "$copy"
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
    UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$copy" "$python" -m pytest -q -s -p no:cacheprovider tests/kernels "$@"
