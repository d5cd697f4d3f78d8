#!/usr/bin/env bash
# Starts the local Kubernetes cluster: a control plane, an S3 server and two nodes (NODES=1 for one), all of them below
# one process in namespaces of its own. Writes target/cluster/kubeconfig and s3.env. Does nothing when it is up already.
# Runs setup.sh first. On failure it says which log to read, and takes everything down again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

NODES=${NODES:-2}
[[ $NODES =~ ^[1-9]$ ]] || die "NODES is '$NODES'; it can be 1 to 9"

kubectl() { "$CLUSTER/bin/kubectl" --kubeconfig "$CLUSTER/kubeconfig" --request-timeout 5s "$@"; }

tell_how_to_use() {
	say ""
	say "export KUBECONFIG=$CLUSTER/kubeconfig"
	say "export PATH=$CLUSTER/bin:\$PATH   # kubectl, helm"
	say "S3 endpoint and credentials: $CLUSTER/s3.env; logs: $LOGS"
}

main() {
	need_root up.sh
	lock 1
	if cluster_top >/dev/null; then
		local running
		running=$(kubectl get nodes --output name 2>/dev/null | wc -l) || true
		[[ $running -gt 0 ]] || die "the cluster runs but does not answer; see $LOGS, or run $SCRIPTS/down.sh"
		say "The cluster is up already, with $running node(s)."
		[[ $running -eq $NODES ]] || say "To have $NODES, run $SCRIPTS/down.sh first."
		tell_how_to_use
		return
	fi
	"$SCRIPTS/setup.sh"
	"$SCRIPTS/down.sh" --quiet --locked # what a killed run left
	refuse_taken_addresses

	exec 8>&2 # an interrupt may come while a command's output is thrown away
	trap 'failed $?' EXIT
	prepare
	start
	wait_for "API server ready" 60 kubectl get --raw /readyz
	make_bucket
	wait_for "$NODES node(s) Ready" 120 nodes_are_ready
	wait_for "controllers at work" 30 kubectl get serviceaccount default
	trap - EXIT
	say "The cluster is up, after $(elapsed)."
	tell_how_to_use
}

# The one thing that two clusters on a machine share is the machine's routing table.
refuse_taken_addresses() {
	local range routes
	for range in $NETWORK.0/24 $POD_NETWORK.0.0/16 $SERVICE_NETWORK; do
		routes=$({ ip -4 route show root "$range" && ip -4 route show match "$range"; } | grep -v ^default || true)
		[[ -z $routes ]] || die "this machine has a route for $range already: ${routes%%$'\n'*}
Perhaps another checkout's cluster is up (its link is named tm-...; run that checkout's tests/cluster/down.sh)."
	done
}

prepare() {
	rm -rf "$LOGS"
	mkdir -p "$STATE" "$LOGS" "$CLUSTER/bin"
	pause_image "$STATE/pause.tar"
	"$SCRIPTS/certificates.sh" "$STATE/pki" "$NODES"
	install -m 600 "$STATE/pki/admin.kubeconfig" "$CLUSTER/kubeconfig"
	ln -sf "$(programs_folder)"/{kubectl,helm} "$CLUSTER/bin/"
	(
		umask 077
		printf 'AWS_ACCESS_KEY_ID=TM%s\nAWS_SECRET_ACCESS_KEY=%s\n' \
			"$(openssl rand -hex 9 | tr a-f A-F)" "$(openssl rand -hex 20)" >"$STATE/s3.credentials"
		{
			printf 'S3_ENDPOINT=%s\nS3_REGION=%s\nS3_BUCKET=%s\n' $S3_ENDPOINT $S3_REGION $S3_BUCKET
			cat "$STATE/s3.credentials"
		} >"$CLUSTER/s3.env"
	)
	phase "certificates and credentials made"
}

# An OCI archive of one file, as containerd imports it; pods' sandboxes are made of it.
pause_image() {
	local archive
	archive=$(pause_folder).tar
	if [[ ! -e $archive ]]; then
		local container
		container=$(own_buildah from scratch)
		own_buildah copy --quiet "$container" "$(pause_folder)/cluster-pause" /pause >/dev/null
		own_buildah config --entrypoint '["/pause"]' --user 65535:65535 "$container"
		own_buildah commit --quiet --rm "$container" $PAUSE_IMAGE >/dev/null
		own_buildah push --quiet --signature-policy "$SCRIPTS/policy.json" $PAUSE_IMAGE "oci-archive:$archive.new:$PAUSE_IMAGE"
		mv "$archive.new" "$archive"
	fi
	cp "$archive" "$1"
}

start() {
	TORCHMODEL_CLUSTER=$ID setsid unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private \
		"$SCRIPTS/inside.sh" "$NODES" &>"$LOGS/cluster.log" </dev/null 8>&- 9>&- &
	local top=$! init='' n
	disown $top
	record_process "$CLUSTER/top.pid" $top
	until init=$(cat /proc/$top/task/$top/children 2>/dev/null) && [[ -n $init ]]; do
		kill -0 $top 2>/dev/null || die "the cluster's first process ended at once"
		sleep 0.02
	done
	init=${init%% *}
	record_process "$CLUSTER/init.pid" "$init"

	ip link add "$LINK" type veth peer name way-in netns "$init"
	ip link set "$LINK" addrgenmode none
	ip address add $NETWORK.254/24 dev "$LINK"
	ip link set "$LINK" up
	for ((n = 1; n <= NODES; n++)); do ip route add $POD_NETWORK.$n.0/24 via $NETWORK.1$n; done
	ip route add $SERVICE_NETWORK via ${NETWORK}.11
	phase "namespaces and network made"
}

# wait_for WHAT SECONDS COMMAND...
wait_for() {
	local what=$1 deadline=$(($(now_ms) + $2 * 1000))
	shift 2
	until "$@" &>/dev/null; do
		cluster_top >/dev/null || die "the cluster ended before: $what"
		[[ $(now_ms) -lt $deadline ]] || die "waited in vain for: $what"
		sleep 0.2
	done
	phase "$what"
}

nodes_are_ready() {
	[[ $(kubectl get nodes --output 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}' | grep -ow True | wc -l) -eq $NODES ]]
}

make_bucket() {
	wait_for "S3 server answers" 30 curl --silent --max-time 5 --output /dev/null $S3_ENDPOINT
	"$SCRIPTS/s3-put.sh" --bucket
	phase "bucket $S3_BUCKET made"
}

failed() {
	trap - EXIT
	say "error: the cluster did not come up. The last lines of its logs, in $LOGS:" >&8
	tail -n 5 "$LOGS"/*.log >&8 || true
	"$SCRIPTS/down.sh" --quiet --locked
	exit "$(($1 == 0 ? 1 : $1))"
}

main
