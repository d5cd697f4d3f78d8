#!/usr/bin/env bash
# Shows that the same binary serves on a GPU: run on a machine with an NVIDIA GPU and a Python that has torch 2.11 (CUDA 13), after
# `make runtime demo-files` here or elsewhere. Its libraries take the place of those in the runtime-cuda image. CI has no GPU and
# does not run this; without one it says so and exits 77, as skipped.
#
#   tests/gpu/run.sh [BINARY]        default: target/release/torchmodel-runtime
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

binary=${1:-target/release/torchmodel-runtime}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || { echo "skipped: no NVIDIA GPU here"; exit 77; }
libraries=$(python3 - <<'PYTHON'
import glob, os, torch
site = os.path.dirname(os.path.dirname(torch.__file__))
print(":".join([site + "/torch/lib"] + sorted(glob.glob(site + "/nvidia/*/lib"))))
PYTHON
)
LD_LIBRARY_PATH=$libraries exec python3 tests/gpu/check.py "$binary"
