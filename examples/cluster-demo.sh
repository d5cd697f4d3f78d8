#!/usr/bin/env bash
# `make cluster-demo`: on the local cluster, does what the README tells, printing each command before it runs: installs the chart,
# serves examples/silero-vad.yaml from S3, asks it through its Service, deletes it, and ends the cluster. Leaves nothing behind,
# also when something fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cluster=target/cluster
[[ -r $cluster/kubeconfig && -r $cluster/s3.env ]] || {
	printf 'error: the local cluster is not up; run: make cluster-demo\n' >&2
	exit 1
}
export KUBECONFIG=$PWD/$cluster/kubeconfig PATH=$PWD/$cluster/bin:$PATH
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY
# shellcheck disable=SC1091 # written by up.sh
source $cluster/s3.env

tell() { printf '\n%s\n' "$*"; }
# run COMMAND...: prints it as it could be typed, then runs it.
run() {
	printf '\n$ %s\n' "$*"
	"$@"
}

finish() {
	local status=$1
	trap - EXIT
	if [[ $status -ne 0 ]]; then
		tell "The demo failed. What the cluster says:"
		kubectl get torchmodels,pods,events --namespace demo || true
		kubectl logs --namespace torchmodel-system deployment/torchmodel --tail 20 || true
	fi
	printf '\n$ make cluster-down\n'
	make --no-print-directory cluster-down || status=1
	exit "$status"
}
trap 'finish $?' EXIT
trap 'exit 130' INT TERM

tests/cluster/images.sh operator runtime
# shellcheck disable=SC1091 # written by images.sh
source $cluster/images.env

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
run kubectl config set-context --current --namespace demo
# shellcheck disable=SC2016 # printed as it can be typed
printf '\n$ kubectl create secret generic models-s3 --from-env-file=<(grep ^AWS_ %s/s3.env)\n' $cluster
kubectl create secret generic models-s3 --from-env-file=<(grep ^AWS_ $cluster/s3.env)

tell "3. The manifest, and what becomes of it."
run kubectl apply -f examples/silero-vad.yaml
run kubectl wait --for=condition=Ready torchmodel/silero-vad --timeout=120s
run kubectl get torchmodels
run kubectl get pods,services --selector serving.torchmodel.dev/model=silero-vad

tell "4. Two recordings through its Service: a voice that says \"front, center\", and noise. Which is speech?"
printf "\n\$ address=\$(kubectl get service silero-vad --output 'jsonpath={.spec.clusterIP}')\n"
address=$(kubectl get service silero-vad --output 'jsonpath={.spec.clusterIP}')
# A node may learn of a new Service a moment after its pods are ready.
run curl --silent --show-error --fail --retry 30 --retry-all-errors --retry-delay 1 --connect-timeout 1 \
	"http://$address:8080/v2/models/silero-vad/ready"
printf '\n'
run target/demo/client/bin/python examples/silero_vad.py --http "$address:8080" --grpc "$address:8081" \
	target/demo/Front_Center.wav target/demo/Noise.wav

tell "5. Deleting it removes everything that was made for it."
run kubectl delete -f examples/silero-vad.yaml
kubectl wait --for=delete pods,services,deployments --selector serving.torchmodel.dev/model=silero-vad --timeout=60s >/dev/null
run kubectl get torchmodels,deployments,services,pods,configmaps,serviceaccounts --selector serving.torchmodel.dev/model=silero-vad
run helm uninstall torchmodel --namespace torchmodel-system --wait
tell "6. And the cluster itself:"
