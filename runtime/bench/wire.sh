#!/usr/bin/env bash
# Builds what `make bench-wire` compares and runs the comparison: today's runtime beside the slice's, the commit that every later
# figure of the wire is held against. Arguments go to `torchmodel-bench wire` (--quick, --case, --rounds, …).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
slice=ed05e64
folder=$root/target/bench
sources=$folder/slice-$slice
built=$folder/slice-$slice-target/release/torchmodel-runtime

if [[ ! -x $built ]]; then
	git -C "$root" cat-file -e "$slice^{commit}" 2>/dev/null || {
		echo "wire.sh: this clone does not have the commit $slice; fetch it with \`git fetch --unshallow\`" >&2
		exit 1
	}
	echo "wire.sh: building the runtime of $slice (the first time about 8 minutes on two cores)"
	# Its files without a .git: cargo and git then see nothing of it, and removing the folder is all there is to clean up.
	rm -rf "$sources"
	mkdir -p "$sources"
	git -C "$root" archive "$slice" | tar -x -C "$sources"
	(
		cd "$sources"
		LIBTORCH=$root/target/libtorch CARGO_TARGET_DIR=$folder/slice-$slice-target \
			cargo build --release --locked -p torchmodel-runtime
	)
fi
cd "$root"
# Apart, so that the runtime is the one that `make runtime` builds: together they would share features.
cargo build --release --locked -p torchmodel-runtime
cargo build --release --locked -p torchmodel-bench
exec target/release/torchmodel-bench wire --libtorch target/libtorch/lib --models "$folder/models" \
	--server "slice=$built" --server today=target/release/torchmodel-runtime "$@"
