#!/usr/bin/env bash
# Brings libtorch into target/libtorch: the headers and the libraries that a CPU program needs, from the pinned and
# checksummed PyPI wheels that libtorch-cpu.txt lists. `libtorch.sh cuda` brings what a GPU needs beside them into
# target/libtorch-cuda. Called by the Makefile; does nothing when the folder is already there for the same list.
set -euo pipefail

die() {
	printf 'libtorch.sh: %s\n' "$*" >&2
	exit 1
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
kind=${1:-cpu}
list=$here/libtorch-$kind.txt
[[ -f $list ]] || die "unknown kind '$kind': use cpu or cuda"
# CUDA's libraries lie beside those.
[[ $kind == cpu ]] || "${BASH_SOURCE[0]}" cpu
cache=${TORCHMODEL_CACHE:-$root/target/cache}
# A folder is made anew when the list changes, or this number: raise it with what is made of the wheels below.
format=1
key=$(cat - "$list" <<<"$format" | sha256sum | cut -c1-16)
folder=$cache/libtorch-$kind-$key
link=$root/target/libtorch
[[ $kind == cpu ]] || link=$root/target/libtorch-$kind

if [[ ! -d $folder ]]; then
	part=$folder.part.$$
	reporter=
	trap 'kill $reporter 2>/dev/null || true; rm -rf "$part"' EXIT
	mkdir -p "$part/wheels" "$part/lib" "$part/tmp"
	declare -A sizes=([cpu]="0.5 GB" [cuda]="2.5 GB")
	echo "libtorch ($kind): downloading the wheels that ${list#"$root"/} pins, ${sizes[$kind]}"
	# What pip tells of its progress is for terminals alone. It writes to its temporary folder first.
	while sleep 10 >/dev/null 2>&1; do echo "libtorch ($kind): $(du -sh "$part" 2>/dev/null | cut -f1) so far"; done &
	reporter=$!
	disown
	TMPDIR=$part/tmp python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: \
		--python-version 3.11 --implementation cp --abi cp311 --abi none --abi abi3 \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_25_x86_64 \
		--platform manylinux_2_18_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		--platform manylinux1_x86_64 --platform any --dest "$part/wheels" --requirement "$list"
	kill $reporter
	reporter=
	echo "libtorch ($kind): unpacking $(du -sh "$part/wheels" | cut -f1)"
	python3 - "$kind" "$part" <<'PYTHON'
import glob, os, shutil, sys, zipfile
kind, part = sys.argv[1:]
# What the loader asks for (readelf -d) and what is loaded later by name: linear algebra, nvrtc with its builtins, cuDNN's parts.
# Not here: profilers, static libraries, several-GPU solvers, transports between machines, and what only Python loads.
libraries = {
    "cpu": """
        libtorch_cpu.so libc10.so libgomp.so.1 libcudart.so.13 libcupti.so.13
    """,
    "cuda": """
        libtorch_cuda.so libtorch_cuda_linalg.so libtorch_nvshmem.so libc10_cuda.so libcaffe2_nvrtc.so
        libcublas.so.13 libcublasLt.so.13 libcufft.so.12 libcufile.so.0 libcurand.so.10 libcusolver.so.12 libcusparse.so.12
        libcusparseLt.so.0 libnccl.so.2 libnvJitLink.so.13 libnvrtc.so.13 libnvrtc-builtins.so.13.0 libnvshmem_host.so.3
        libcudnn.so.9 libcudnn_adv.so.9 libcudnn_cnn.so.9 libcudnn_engines_precompiled.so.9
        libcudnn_engines_runtime_compiled.so.9 libcudnn_graph.so.9 libcudnn_heuristic.so.9 libcudnn_ops.so.9
    """,
}
missing = set(libraries[kind].split())
for wheel in sorted(glob.glob(part + "/wheels/*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            base = os.path.basename(name)
            if kind == "cpu" and name.startswith("torch/include/") and base:
                target = part + name.removeprefix("torch")
            elif "/lib/" in name and base in missing:
                missing.remove(base)
                target = f"{part}/lib/{base}"
            else:
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with archive.open(name) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
if missing:
    sys.exit("libtorch.sh: not in the wheels: " + " ".join(sorted(missing)))
PYTHON
	rm -rf "$part/wheels" "$part/tmp"
	if [[ $kind == cpu ]]; then
		# torch-sys links -ltorch; the wheel's own libtorch.so would pull in CUDA.
		echo | cc -shared -x c - -o "$part/lib/libtorch.so" -Wl,-soname,libtorch.so
		echo 2.11.0 >"$part/build-version"
	fi
	# The driver brings libcuda.so.1.
	absent=$({ LD_LIBRARY_PATH=$part/lib:$root/target/libtorch/lib ldd "$part"/lib/*.so* 2>/dev/null || true; } |
		awk '/ => not found/ && $1 != "libcuda.so.1" && !seen[$1]++ { printf " %s", $1 }')
	[[ -z $absent ]] || die "the libraries need others that are not listed here:$absent"
	rm -rf "$folder"
	mv "$part" "$folder"
	trap - EXIT
	echo "libtorch ($kind): ready, $(du -shL "$folder/lib" | cut -f1) of libraries"
fi
mkdir -p "$root/target"
ln -sfn "$folder" "$link"
