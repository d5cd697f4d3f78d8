#!/usr/bin/env bash
# Shows that the same binary serves on a GPU, with the libraries laid out as in the runtime-cuda image: run on a machine with an
# NVIDIA GPU and a Python that has torch 2.11 (CUDA 13), whose wheels hold the same libraries, after `make image-files demo-files`
# here or elsewhere. CI has no GPU and does not run this; without one it says so and exits 77, as skipped.
#
#   tests/gpu/run.sh [BINARY [SHIM_TESTS]]        default: target/image/bin/torchmodel-runtime
#
# SHIM_TESTS is the program that `cargo test -p torch-shim --test shim --no-run` names: its tests of a GPU are run too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

binary=${1:-target/image/bin/torchmodel-runtime}
if ! nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null; then
	echo "skipped: no NVIDIA GPU here"
	exit 77
fi
image=$(mktemp -d)
trap 'rm -rf "$image"' EXIT
mkdir "$image/bin" "$image/lib"
cp "$binary" "$image/bin/"
cp target/image/lib/libtorch.so "$image/lib/"
# The image's libraries, by name, and no others.
grep -oE 'lib[A-Za-z0-9_-]+\.so(\.[0-9]+)*' runtime/torch-shim/libtorch.sh | sort -u |
	python3 -c '
import glob, os, shutil, sys, torch
site = os.path.dirname(os.path.dirname(torch.__file__))
for name in sys.stdin.read().split():
    found = glob.glob(f"{site}/torch/lib/{name}") + glob.glob(f"{site}/nvidia/*/lib/{name}")
    if found and not os.path.exists(f"{sys.argv[1]}/{name}"):
        shutil.copy(found[0], sys.argv[1])
' "$image/lib"
echo "$(find "$image/lib" -type f | wc -l) libraries, $(du -sh "$image/lib" | cut -f1)"
if [[ ${2-} ]]; then
	LD_LIBRARY_PATH=$image/lib "$2" gpu:: --nocapture --test-threads=1
fi
python3 tests/gpu/check.py "$image/bin/$(basename "$binary")"
