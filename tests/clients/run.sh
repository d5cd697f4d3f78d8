#!/usr/bin/env bash
# Shows that stock clients work unchanged against one model: perf_analyzer over REST and gRPC, and the calls that tritonclient's
# simple examples make. Needs root (chroot, mmdebstrap) and package registries; bounded in requests and time, on the loopback only.
#
#   tests/clients/run.sh [PROGRAM]        default: target/debug/torchmodel-runtime
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PERF_ANALYZER=2.60.0
program=$(realpath "${1:-target/debug/torchmodel-runtime}")
cache=${TORCHMODEL_CACHE:-$PWD/target/cache}/clients
work=$(mktemp -d)
server=
stop() {
	[[ -z $server ]] || kill "$server" 2>/dev/null || true
	rm -rf "$work"
}
trap stop EXIT

# perf_analyzer and the libraries that it wants, in a Debian trixie root.
prepare_root() {
	local root=$cache/trixie-perf-analyzer-$PERF_ANALYZER part
	if [[ ! -x $root/perf_analyzer ]]; then
		echo "clients: making a Debian trixie root with perf_analyzer $PERF_ANALYZER (about 90 seconds)"
		mkdir -p "$cache"
		part=$root.part.$$
		mmdebstrap --quiet --variant=essential --include=libstdc++6,zlib1g,libssl3t64 trixie "$part"
		python3 -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_38_x86_64 --dest "$work" \
			"perf-analyzer==$PERF_ANALYZER"
		python3 -m zipfile -e "$work"/perf_analyzer-*.whl "$work/wheel"
		install -m 755 "$work/wheel/perf_analyzer/bin/perf_analyzer" "$part/perf_analyzer"
		mv -T "$part" "$root" 2>/dev/null || [[ -d $root ]] # another one was faster
	fi
	perf_root=$root
}

prepare_client() {
	local list=tests/clients/requirements.txt
	venv=$cache/venv-$(sha256sum "$list" | cut -c1-16)
	if [[ ! -d $venv ]]; then
		python3 -m venv "$venv.part.$$"
		"$venv.part.$$/bin/pip" install --quiet --disable-pip-version-check --requirement "$list"
		mv -T "$venv.part.$$" "$venv" 2>/dev/null || [[ -d $venv ]]
	fi
}

# Triton's model `simple`: sum and difference of two rows of 16 INT32, up to 8 rows of them.
serve() {
	cargo run --quiet --locked -p torchmodel-bench -- models "$work/models" >/dev/null
	cat >"$work/simple.yaml" <<-YAML
		source:
		  uri: file://$work/models/add_sub.pt
		model:
		  name: simple
		  inputs:
		    - {name: INPUT0, datatype: INT32, shape: [-1, 16]}
		    - {name: INPUT1, datatype: INT32, shape: [-1, 16]}
		  outputs:
		    - {name: OUTPUT0, datatype: INT32, shape: [-1, 16]}
		    - {name: OUTPUT1, datatype: INT32, shape: [-1, 16]}
		  batching: {maxBatchSize: 8}
	YAML
	"$program" serve --file "$work/simple.yaml" --cache-dir "$work/cache" --device cpu --log-format json \
		--http-address 127.0.0.1:0 --grpc-address 127.0.0.1:0 --metrics-address 127.0.0.1:0 2>"$work/log" &
	server=$!
	for _ in {1..600}; do
		! grep -q '"every model is ready"' "$work/log" || break
		kill -0 "$server" 2>/dev/null || {
			cat "$work/log" >&2
			exit 1
		}
		sleep 0.1
	done
	http=$(grep '"listening"' "$work/log" | python3 -c 'import json, sys; print(json.loads(sys.stdin.readline())["http"])')
	grpc=$(grep '"listening"' "$work/log" | python3 -c 'import json, sys; print(json.loads(sys.stdin.readline())["grpc"])')
}

# perf PROTOCOL ADDRESS BATCH: a bounded measurement that must count requests and see no error.
perf() {
	local log=$work/perf
	echo "=== perf_analyzer $PERF_ANALYZER over $1, batch $3"
	timeout 300 chroot "$perf_root" /perf_analyzer -m simple -i "$1" -u "$2" -b "$3" --measurement-mode count_windows \
		--measurement-request-count 200 --concurrency-range 2 --stability-percentage 999 --max-trials 3 >"$log" 2>&1 || {
		cat "$log" >&2
		exit 1
	}
	grep -E 'Request count:|Throughput:|Inference count:|Execution count:|Avg request latency:' "$log"
	grep -qE 'Inference count: [1-9]' "$log" || {
		echo 'perf_analyzer found no statistics of the server' >&2
		exit 1
	}
}

prepare_root
prepare_client
serve
"$venv/bin/python" tests/clients/calls.py "$http" "$grpc"
for batch in 1 8; do
	perf http "$http" "$batch"
	perf grpc "$grpc" "$batch"
done
echo 'every stock client works unchanged'
