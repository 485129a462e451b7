#!/bin/sh
# Runs the kernels' tests with AddressSanitizer and UBSan. Needs gcc with its sanitizers.
#   tests/kernels/sanitize.sh [Python's command] [further arguments for pytest]
# Leaks are not reported, because Python itself leaks at exit. A finding ends the process, so output is not captured.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${1:-python}
[ $# -eq 0 ] || shift
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$root/gptcli" "$root/tests" "$root/pyproject.toml" "$copy"
rm -f "$copy"/gptcli/kernels/_native*
# CHUNK_BYTES=0 gives each matrix its own memory, so that reads past its end are found. Products and sums are fused as in
# the package's own build, or else some round otherwise.
gcc -g -O1 -fexpensive-optimizations -std=gnu11 -fvisibility=hidden -fno-math-errno -fno-trapping-math -pthread -fPIC -shared -DCHUNK_BYTES=0 \
    -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra \
    $(find "$copy/gptcli/kernels/c" -name '*.c') -o "$copy/gptcli/kernels/_native.so" -lm
cd "$copy"
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
    UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$copy" "$python" -m pytest -q -s -p no:cacheprovider tests/kernels "$@"
