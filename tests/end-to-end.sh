#!/usr/bin/env bash
# `make test-cluster`: runs the end-to-end tests on a real cluster.
#
# Where KUBECONFIG is set, on that one: OPERATOR_IMAGE and RUNTIME_IMAGE name images that its nodes can pull (make image-files;
# the Dockerfile builds them), S3_ENDPOINT, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY an S3 server that this machine and the
# pods reach, with a bucket "models" (S3_BUCKET, S3_REGION). kubectl and helm must be on PATH. Otherwise on the local one
# (tests/cluster), which is started for it, and ended again unless it ran before. Neither may have the chart installed already.
# Arguments go to the tests: a part of a name, --list.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
logs=$PWD/target/cluster/logs
# For downloads; the local cluster is on this machine.
PROXIES=(http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY)

say() { printf '%s\n' "$*"; }
die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

main() {
	if [[ ${KUBECONFIG-} ]]; then
		own_cluster
	else
		local_cluster
	fi
	export CARGO_TERM_PROGRESS_WHEN=${CARGO_TERM_PROGRESS_WHEN-never}
	# The same selection of packages as in `make test-code`: another one would unify features otherwise, and compile anew.
	cargo test --locked --workspace --test cluster -- "$@"
}

# A cluster that the user has: what it cannot tell by itself must be in the environment.
own_cluster() {
	local name missing=()
	for name in OPERATOR_IMAGE RUNTIME_IMAGE S3_ENDPOINT AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
		[[ ${!name-} ]] || missing+=("$name")
	done
	[[ ${#missing[@]} -eq 0 ]] ||
		die "KUBECONFIG names a cluster, but ${missing[*]} are not set; the first lines of $0 say what they are. Unset KUBECONFIG to use the local cluster."
	for name in kubectl helm; do
		command -v "$name" >/dev/null || die "$name is not on PATH; tests on a cluster of your own need kubectl and helm"
	done
	kubectl version >/dev/null || die "the cluster that KUBECONFIG names does not answer"
	refuse_installed_chart
	trap 'finish $?' EXIT
}

# The tests install the chart themselves, and its CustomResourceDefinition can belong to one release alone.
refuse_installed_chart() {
	local crd=torchmodels.serving.torchmodel.dev owner
	owner=$(kubectl get crd $crd --ignore-not-found --output \
		'jsonpath=name="{.metadata.annotations.meta\.helm\.sh/release-name}", namespace="{.metadata.annotations.meta\.helm\.sh/release-namespace}"') ||
		die "the cluster does not say whether it has the CustomResourceDefinition $crd"
	[[ -z $owner ]] || die "the cluster has the CustomResourceDefinition $crd already (helm release: $owner), and the tests install their own.
Use another cluster; or uninstall that release, and run: kubectl delete crd $crd   (which deletes every TorchModel)"
}

# The local cluster, with images of what is built now.
local_cluster() {
	is_local=yes was_up=
	make image-files
	export KUBECONFIG=$PWD/target/cluster/kubeconfig PATH=$PWD/target/cluster/bin:$PATH
	if tests/cluster/is-up.sh; then
		was_up=yes
		unset "${PROXIES[@]}"
		refuse_installed_chart
	fi
	trap 'finish $?' EXIT
	tests/cluster/up.sh
	tests/cluster/images.sh operator runtime
	unset "${PROXIES[@]}"
	set -a
	# shellcheck disable=SC1091 # written by up.sh and images.sh
	source target/cluster/s3.env
	# shellcheck disable=SC1091
	source target/cluster/images.env
	set +a
}

# Whatever happened: tells of a failure, and leaves the cluster and the machine as they were.
finish() {
	local status=$1
	trap - EXIT
	[[ $status -eq 0 ]] || collect
	remove_tests
	if [[ ${is_local-} && ! $was_up ]]; then
		unset KUBECONFIG
		tests/cluster/down.sh || status=1
		tests/cluster/verify-clean.sh || status=1
	fi
	exit "$status"
}

# The tests remove what they made, unless they were killed.
remove_tests() {
	command -v helm >/dev/null || return 0
	local release namespaces
	for release in $(helm list --all-namespaces --filter '^tm-[0-9a-f]+$' --short 2>/dev/null); do
		helm uninstall "$release" --namespace "$release" --wait --timeout 60s || true
		kubectl delete namespace "$release" --timeout=60s || true
	done
	namespaces=$(kubectl get namespaces --selector app.kubernetes.io/part-of=torchmodel-tests --output name 2>/dev/null) || true
	# shellcheck disable=SC2086 # one word each
	[[ -z $namespaces ]] || kubectl delete $namespaces --timeout=60s || true
}

# What is left to read of a run that failed. A test that fails prints its own namespace before it is deleted.
collect() {
	mkdir -p "$logs"
	kubectl get events --all-namespaces --sort-by=.lastTimestamp >"$logs/events.txt" 2>&1 || true
	kubectl get all,torchmodels --all-namespaces --output wide >"$logs/objects.txt" 2>&1 || true
	local selector
	for selector in operator runtime; do
		local namespace
		for namespace in $(kubectl get pods --all-namespaces --selector "app.kubernetes.io/name=torchmodel-$selector" \
			--output 'jsonpath={range .items[*]}{.metadata.namespace}{"\n"}{end}' 2>/dev/null | sort -u); do
			kubectl logs --namespace "$namespace" --selector "app.kubernetes.io/name=torchmodel-$selector" --prefix --tail=-1
		done >"$logs/$selector.txt" 2>&1 || true
	done
	say ""
	say "The run failed. Last lines of $logs/:"
	tail -n 10 "$logs"/{events,operator,runtime}.txt || true
}

main "$@"
