#!/usr/bin/env bash
# Brings libtorch into target/libtorch: the headers and the four libraries that a CPU program needs, from the pinned and
# checksummed PyPI wheels that libtorch-cpu.txt lists. `libtorch.sh cuda` brings the CUDA libraries into target/libtorch-cuda.
# Called by the Makefile; does nothing when the folder is already there for the same list.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
kind=${1:-cpu}
list=$here/libtorch-$kind.txt
[ -f "$list" ] || { echo "libtorch.sh: unknown kind '$kind': use cpu or cuda" >&2; exit 2; }
cache=${TORCHMODEL_CACHE:-$root/target/cache}
key=$(cat "$list" "${BASH_SOURCE[0]}" | sha256sum | cut -c1-16)
folder=$cache/libtorch-$kind-$key
link=$root/target/libtorch
[ "$kind" = cpu ] || link=$root/target/libtorch-$kind

if [ ! -d "$folder" ]; then
    part=$folder.part.$$
    trap 'rm -rf "$part"' EXIT
    mkdir -p "$part/wheels" "$part/lib"
    echo "libtorch ($kind): downloading the wheels that ${list#"$root"/} pins"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: \
        --python-version 3.11 --implementation cp --abi cp311 --abi none --abi abi3 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_25_x86_64 \
        --platform manylinux_2_18_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --platform manylinux1_x86_64 --platform any --dest "$part/wheels" --requirement "$list"
    echo "libtorch ($kind): unpacking $(du -sh "$part/wheels" | cut -f1)"
    python3 - "$kind" "$part" <<'PYTHON'
import glob, os, shutil, sys, zipfile
kind, part = sys.argv[1:]
cpu = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"}
for wheel in sorted(glob.glob(part + "/wheels/*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            base = os.path.basename(name)
            if kind == "cpu" and name.startswith("torch/include/") and base:
                target = part + name.removeprefix("torch")
            elif not base or ".so" not in base or "/lib/" not in name or "python" in base or "shm" in base:
                continue
            elif kind == "cpu" and base not in cpu or kind == "cuda" and base in cpu | {"libtorch.so"}:
                continue
            else:
                target = f"{part}/lib/{base}"
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with archive.open(name) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
PYTHON
    rm -rf "$part/wheels"
    if [ "$kind" = cpu ]; then
        # torch-sys links -ltorch; the wheel's own libtorch.so would pull in CUDA.
        echo | cc -shared -x c - -o "$part/lib/libtorch.so" -Wl,-soname,libtorch.so
        echo 2.11.0 >"$part/build-version"
    fi
    rm -rf "$folder"
    mv "$part" "$folder"
    trap - EXIT
    echo "libtorch ($kind): ready, $(du -shL "$folder/lib" | cut -f1) of libraries"
fi
mkdir -p "$root/target"
ln -sfn "$folder" "$link"
