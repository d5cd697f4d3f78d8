#!/usr/bin/env bash
# Writes the throw-away certificates, keys and kubeconfig files of one run of the local cluster.
# Called by up.sh with the folder to write to and the number of nodes. Nothing of it outlives the run.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

PKI=$1
NODES=$2
mkdir -p "$PKI"
cd "$PKI"
umask 077

printf '[req]\ndistinguished_name = name\n[name]\n' >openssl.cnf
request=(openssl req -config openssl.cnf -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 365)

authority() { # NAME
	"${request[@]}" -subj "/CN=$1" -keyout "$1.key" -out "$1.crt" \
		-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,digitalSignature \
		-addext subjectKeyIdentifier=hash 2>/dev/null
}
certificate() { # FILE SUBJECT AUTHORITY [SUBJECT_ALTERNATIVE_NAMES]
	"${request[@]}" -subj "$2" -CA "$3.crt" -CAkey "$3.key" -keyout "$1.key" -out "$1.crt" \
		-addext keyUsage=critical,digitalSignature -addext extendedKeyUsage=serverAuth,clientAuth \
		${4:+-addext "subjectAltName=$4"} 2>/dev/null
}
kubeconfig() { # FILE CERTIFICATE
	cat >"$1" <<-END
		apiVersion: v1
		kind: Config
		current-context: torchmodel
		contexts: [{name: torchmodel, context: {cluster: torchmodel, user: $2}}]
		clusters:
		- name: torchmodel
		  cluster: {server: "$API", certificate-authority-data: $(base64 -w0 ca.crt)}
		users:
		- name: $2
		  user: {client-certificate-data: $(base64 -w0 "$2.crt"), client-key-data: $(base64 -w0 "$2.key")}
	END
}

authority ca
authority front-proxy-ca
certificate apiserver /CN=kube-apiserver ca \
	"IP:127.0.0.1,IP:$NETWORK.1,IP:${SERVICE_NETWORK%.0/16}.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
certificate apiserver-client "/O=system:masters/CN=kube-apiserver-client" ca
certificate front-proxy /CN=front-proxy front-proxy-ca
certificate admin "/O=system:masters/CN=admin" ca
certificate controller-manager /CN=system:kube-controller-manager ca
certificate scheduler /CN=system:kube-scheduler ca
certificate kube-proxy /CN=system:kube-proxy ca
for user in admin controller-manager scheduler kube-proxy; do kubeconfig $user.kubeconfig $user; done
for ((n = 1; n <= NODES; n++)); do
	certificate "node-$n" "/O=system:nodes/CN=system:node:node-$n" ca "IP:$NETWORK.1$n,DNS:node-$n"
	kubeconfig "node-$n.kubeconfig" "node-$n"
done
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out service-account.key 2>/dev/null
openssl pkey -in service-account.key -pubout -out service-account.pub
