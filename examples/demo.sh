#!/usr/bin/env bash
# `make demo`: serves examples/silero-vad.yaml with the runtime alone, asks it about speech and about noise, and stops it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

demo=target/demo
log=$demo/serve.log
serve=(target/release/torchmodel-runtime serve -f examples/silero-vad.yaml --artifact "$demo/silero_vad.jit"
	--http-address 127.0.0.1:0 --grpc-address 127.0.0.1:0 --metrics-address 127.0.0.1:0)
printf '\n$ %s\n' "${serve[*]}"
"${serve[@]}" >"$log" 2>&1 &
server=$!
trap 'kill -INT $server 2>/dev/null || true; wait $server 2>/dev/null || true' EXIT

for _ in $(seq 600); do
	grep -q ' ready ' "$log" && break
	kill -0 $server 2>/dev/null || break
	sleep 0.1
done
cat "$log"
if ! grep -q ' ready ' "$log"; then
	echo "the model did not become ready" >&2
	exit 1
fi
address() { sed -n "s/.* listening .*$1=\"\([^\"]*\)\".*/\1/p" "$log"; }

printf '\nIt is live at http://%s. What it takes and gives:\n\n$ curl http://%s/v2/models/silero-vad\n' "$(address http)" "$(address http)"
curl --silent --fail "http://$(address http)/v2/models/silero-vad"
ask=(examples/silero_vad.py --http "$(address http)" --grpc "$(address grpc)" "$demo/Front_Center.wav" "$demo/Noise.wav")
printf '\n\nA voice that says "front, center", and noise. Which is speech?\n\n$ python %s\n' "${ask[*]}"
"$demo/client/bin/python" "${ask[@]}"
printf '\nThe server counted:\n\n$ curl http://%s/metrics\n' "$(address metrics)"
curl --silent --fail "http://$(address metrics)/metrics" | grep -E '^nv_inference_(request_success|count)'
