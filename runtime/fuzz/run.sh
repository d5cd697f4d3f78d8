#!/usr/bin/env bash
# Runs the fuzz targets on stable Rust: runtime/fuzz/run.sh [--runs=N] [--seconds=N] [TARGET...]
#
# Each target, or each that is named, gets inputs until N have been run (1,000,000) or N seconds are over. They begin with what is
# kept in runtime/fuzz/corpus and with what earlier runs found worth keeping, in target/fuzz/corpus. An input for which a check
# fails goes to target/fuzz/failures; moved to runtime/fuzz/corpus/TARGET it is a case of `make test`.
# Called by `make fuzz`, which has fetched libtorch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly CARGO_FUZZ=0.13.1
readonly BUILT=$PWD/target/fuzz

# Installs cargo-fuzz, once, and puts it on PATH.
install_cargo_fuzz() {
	local folder=${TORCHMODEL_CACHE:-$PWD/target/cache}/cargo-fuzz-$CARGO_FUZZ
	if [[ ! -x $folder/bin/cargo-fuzz ]]; then
		echo "fuzz: building cargo-fuzz $CARGO_FUZZ, half a minute"
		cargo install --quiet --locked --root "$folder" "cargo-fuzz@$CARGO_FUZZ"
	fi
	PATH=$folder/bin:$PATH
}

# fuzz COMMAND ARGUMENT...: cargo-fuzz without a sanitizer, which only nightly compilers have.
fuzz() {
	cargo fuzz "$1" --fuzz-dir runtime/fuzz/targets --sanitizer none --target-dir "$BUILT" "${@:2}"
}

# run TARGET: gives it inputs, and says how many it had.
run() {
	local target=$1 log=$BUILT/$1.log count before status=0
	mkdir -p "$BUILT"/{corpus,failures}/"$target" "$BUILT/executions"
	fuzz run "$target" "$BUILT/corpus/$target" "runtime/fuzz/corpus/$target" -- \
		-runs="$runs" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=4096 -print_final_stats=1 \
		-dict="runtime/fuzz/dictionaries/$target.dict" -artifact_prefix="$BUILT/failures/$target/" &>"$log" || status=$?
	count=$(awk '/^stat::number_of_executed_units/ { print $2 }' "$log")
	before=$(cat "$BUILT/executions/$target" 2>/dev/null || echo 0)
	echo $((before + ${count:-0})) >"$BUILT/executions/$target"
	printf '%-14s %12d inputs now, %12d in all: ' "$target" "${count:-0}" "$((before + ${count:-0}))"
	if [[ $status -eq 0 ]]; then
		echo "every check held"
	else
		echo "FAILED, as $log says"
		failed=1
	fi
}

runs=1000000 seconds=0 targets=() failed=0
for argument in "$@"; do
	case $argument in
	--runs=*) runs=${argument#*=} ;;
	--seconds=*) seconds=${argument#*=} ;;
	-*)
		echo "fuzz: unknown option $argument; there are --runs=N and --seconds=N" >&2
		exit 2
		;;
	*) targets+=("$argument") ;;
	esac
done
if [[ ${#targets[@]} -eq 0 ]]; then
	for file in runtime/fuzz/targets/fuzz_targets/*.rs; do
		targets+=("$(basename "$file" .rs)")
	done
fi

install_cargo_fuzz
# Programs find libtorch there; what the archive's check writes is small and need not reach a disk.
export LD_LIBRARY_PATH=$PWD/target/libtorch/lib
[[ ! -w /dev/shm ]] || export TMPDIR=/dev/shm
fuzz build
for target in "${targets[@]}"; do
	run "$target"
done
exit "$failed"
