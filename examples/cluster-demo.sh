#!/usr/bin/env bash
# `make cluster-demo`: on the local cluster, does what the README tells, printing each command before it runs: installs the chart,
# serves examples/silero-vad.yaml from S3, asks it through its Service, and deletes it. Starts the cluster, and ends it; one that
# was up before stays up, with nothing more on it than the model's file in its S3 server. The same when something fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cluster=target/cluster
crd=torchmodels.serving.torchmodel.dev

tell() { printf '\n%s\n' "$*"; }
# run COMMAND...: prints it as it could be typed, then runs it.
run() {
	printf '\n$ %s\n' "$*"
	"$@"
}

# What is there already is somebody's, and would be removed at the end.
refuse_installed() {
	local object found there=()
	for object in namespace/torchmodel-system namespace/demo crd/$crd; do
		found=$(kubectl get "$object" --ignore-not-found --output name)
		[[ -z $found ]] || there+=("$object")
	done
	[[ ${#there[@]} -eq 0 ]] || {
		printf 'error: the local cluster, which was up before the demo, has %s already.\n' "${there[*]}" >&2
		printf 'Run make cluster-down first, or: helm uninstall torchmodel --namespace torchmodel-system; kubectl delete %s\n' "${there[*]}" >&2
		exit 1
	}
}

finish() {
	local status=$1
	trap - EXIT
	if [[ $status -ne 0 && ${is_installing-} ]]; then
		tell "The demo failed. What the cluster says:"
		kubectl get torchmodels,pods,events --namespace demo || true
		kubectl logs --namespace torchmodel-system deployment/torchmodel --tail 20 || true
	fi
	if [[ $was_up ]]; then
		[[ ! ${is_installing-} ]] || uninstall || status=1
	else
		tell "And the cluster itself:"
		run make cluster-down || status=1
	fi
	exit "$status"
}

# Each step as far as the demo came. Models go first, while there is an operator.
uninstall() {
	tell "The cluster was up before, and stays. What the demo brought goes:"
	local left=
	run kubectl delete namespace demo --ignore-not-found --timeout=120s || left=yes
	run helm uninstall torchmodel --namespace torchmodel-system --ignore-not-found --wait --timeout 120s || left=yes
	run kubectl delete namespace torchmodel-system --ignore-not-found --timeout=120s || left=yes
	run kubectl delete crd $crd --ignore-not-found --timeout=120s || left=yes
	[[ ! $left ]]
}

was_up=
if tests/cluster/is-up.sh; then was_up=yes; fi
trap 'finish $?' EXIT
trap 'exit 130' INT TERM

[[ $was_up ]] || run make cluster-up
tests/cluster/images.sh operator runtime
export KUBECONFIG=$PWD/$cluster/kubeconfig PATH=$PWD/$cluster/bin:$PATH
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY
# shellcheck disable=SC1091 # written by up.sh
source $cluster/s3.env
# shellcheck disable=SC1091 # written by images.sh
source $cluster/images.env
refuse_installed
is_installing=yes

# shellcheck disable=SC2016 # printed as it can be typed
printf '\n$ export KUBECONFIG=$PWD/%s/kubeconfig PATH=$PWD/%s/bin:$PATH\n' $cluster $cluster

tell "1. The operator: one chart, nothing else to install."
run helm install torchmodel charts/torchmodel --namespace torchmodel-system --create-namespace --wait --timeout 120s --hide-notes \
	--set "operator.image.repository=${OPERATOR_IMAGE%:*},operator.image.tag=${OPERATOR_IMAGE##*:}" \
	--set "runtime.image.repository=${RUNTIME_IMAGE%:*},runtime.image.tag=${RUNTIME_IMAGE##*:}" \
	--set "runtime.env.AWS_ENDPOINT_URL=$S3_ENDPOINT"
run kubectl --namespace torchmodel-system get pods

tell "2. A model in S3, and the keys to it in a Secret."
run tests/cluster/s3-put.sh target/demo/silero_vad.jit silero-vad/silero_vad.jit
run kubectl create namespace demo
# shellcheck disable=SC2016 # printed as it can be typed
printf '\n$ kubectl --namespace demo create secret generic models-s3 --from-env-file=<(grep ^AWS_ %s/s3.env)\n' $cluster
kubectl --namespace demo create secret generic models-s3 --from-env-file=<(grep ^AWS_ $cluster/s3.env)

tell "3. The manifest, and what becomes of it."
run kubectl --namespace demo apply -f examples/silero-vad.yaml
run kubectl --namespace demo wait --for=condition=Ready torchmodel/silero-vad --timeout=120s
run kubectl --namespace demo get torchmodels
run kubectl --namespace demo get pods,services --selector serving.torchmodel.dev/model=silero-vad

tell '4. Two recordings through its Service: a voice that says "front, center", and noise. Which is speech?'
printf "\n\$ address=\$(kubectl --namespace demo get service silero-vad --output 'jsonpath={.spec.clusterIP}')\n"
address=$(kubectl --namespace demo get service silero-vad --output 'jsonpath={.spec.clusterIP}')
# A node may learn of a new Service a moment after its pods are ready.
run curl --silent --show-error --fail --retry 30 --retry-all-errors --retry-delay 1 --connect-timeout 1 \
	"http://$address:8080/v2/models/silero-vad/ready"
printf '\n'
run target/demo/client/bin/python examples/silero_vad.py --http "$address:8080" --grpc "$address:8081" \
	target/demo/Front_Center.wav target/demo/Noise.wav

tell "5. Deleting it removes everything that was made for it."
run kubectl --namespace demo delete -f examples/silero-vad.yaml
kubectl --namespace demo wait --for=delete pods,services,deployments --selector serving.torchmodel.dev/model=silero-vad \
	--timeout=60s >/dev/null
run kubectl --namespace demo get torchmodels,deployments,services,pods,configmaps,serviceaccounts \
	--selector serving.torchmodel.dev/model=silero-vad
run helm uninstall torchmodel --namespace torchmodel-system --wait
