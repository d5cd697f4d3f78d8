#!/usr/bin/env bash
# Process 1 of the local cluster: runs in its own network, mount and PID namespace, started by up.sh, and starts the
# control plane, the S3 server and the nodes there. When it ends, by whatever cause, the kernel ends all of them.
# Invariant: nothing outside changes. /run, /var/lib, /var/log and /tmp are private; files are kept in the state folder.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

# util-linux would note some mounts in /run/mount, which is the machine's or not there yet.
mount() { command mount --no-mtab "$@"; }

NODES=$1
RUN=/run/torchmodel # the state folder, by a path short enough for unix sockets (107 bytes)
BIN=$RUN/bin
PKI=$RUN/pki

# Folders of the machine, reachable by the same short path from here and from the nodes.
mount --bind "$STATE" /mnt
mkdir -p /mnt/{bin,versitygw,logs,scripts,etcd,s3,s3-accounts}
mount --bind "$(programs_folder)" /mnt/bin
mount --bind "$(versitygw_folder)" /mnt/versitygw
mount --bind "$LOGS" /mnt/logs
mount --bind "$SCRIPTS" /mnt/scripts
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p $RUN /run/netns /run/lock
mount --rbind /mnt $RUN
umount --no-mtab --recursive /mnt
for folder in /var/lib /var/log /tmp; do mount -t tmpfs tmpfs $folder; done
cd /
export PATH=$BIN:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1

# The network: a bridge, the control plane and the S3 server on it, and one namespace for each node.
ip link set lo up
sysctl --quiet --write net.ipv4.ip_forward=1 net.ipv6.conf.all.disable_ipv6=1
# An address of its own: by default a bridge takes the lowest of its ports', and the others go on sending to the former.
ip link add fab0 address 02:00:ac:1e:00:01 type bridge
ip address add $NETWORK.1/24 dev fab0
ip link set fab0 up
# The other end is up.sh's: the only way in.
while ! ip link show way-in &>/dev/null; do sleep 0.05; done
ip link set way-in master fab0 up
for ((n = 1; n <= NODES; n++)); do
	ip netns add "node-$n"
	ip link add "node-$n" type veth peer name eth0 netns "node-$n"
	ip link set "node-$n" master fab0 up
	ip -n "node-$n" link set lo up
	ip -n "node-$n" address add $NETWORK.1$n/24 dev eth0
	ip -n "node-$n" link set eth0 up
	ip -n "node-$n" route add default via $NETWORK.1
	for ((other = 1; other <= NODES; other++)); do
		[[ $other -eq $n ]] || ip -n "node-$n" route add $POD_NETWORK.$other.0/24 via $NETWORK.1$other
	done
	ip route add $POD_NETWORK.$n.0/24 via $NETWORK.1$n
done
ip route add $SERVICE_NETWORK via ${NETWORK}.11

for ((n = 1; n <= NODES; n++)); do
	nsenter --net=/run/netns/node-$n unshare --mount --propagation private \
		$RUN/scripts/node.sh "$n" &>>"$RUN/logs/node-$n.log" </dev/null &
done

# shellcheck disable=SC1091 # written by up.sh
source $RUN/s3.credentials
export ROOT_ACCESS_KEY=$AWS_ACCESS_KEY_ID ROOT_SECRET_KEY=$AWS_SECRET_ACCESS_KEY
supervise versitygw $RUN/versitygw/versitygw --port $NETWORK.1:7070 --region $S3_REGION --iam-dir $RUN/s3-accounts posix $RUN/s3

supervise etcd $BIN/etcd --data-dir $RUN/etcd --unsafe-no-fsync --log-level warn

supervise kube-apiserver $BIN/kube-apiserver \
	--etcd-servers=http://127.0.0.1:2379 \
	--advertise-address=$NETWORK.1 --secure-port=6443 \
	--service-cluster-ip-range=$SERVICE_NETWORK \
	--authorization-mode=Node,RBAC --allow-privileged=true \
	--client-ca-file=$PKI/ca.crt --tls-cert-file=$PKI/apiserver.crt --tls-private-key-file=$PKI/apiserver.key \
	--kubelet-client-certificate=$PKI/apiserver-client.crt --kubelet-client-key=$PKI/apiserver-client.key \
	--kubelet-certificate-authority=$PKI/ca.crt --kubelet-preferred-address-types=InternalIP \
	--service-account-issuer=https://kubernetes.default.svc.cluster.local \
	--service-account-key-file=$PKI/service-account.pub --service-account-signing-key-file=$PKI/service-account.key \
	--enable-aggregator-routing=true \
	--requestheader-client-ca-file=$PKI/front-proxy-ca.crt --requestheader-allowed-names=front-proxy \
	--requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
	--requestheader-extra-headers-prefix=X-Remote-Extra- \
	--proxy-client-cert-file=$PKI/front-proxy.crt --proxy-client-key-file=$PKI/front-proxy.key

while ! curl --silent --fail --max-time 5 --cacert $PKI/ca.crt --cert $PKI/admin.crt --key $PKI/admin.key \
	--output /dev/null $API/readyz; do sleep 0.1; done

# Short periods for the autoscaler: its tests shall not take a quarter of an hour.
supervise kube-controller-manager $BIN/kube-controller-manager \
	--kubeconfig=$PKI/controller-manager.kubeconfig --leader-elect=false --bind-address=127.0.0.1 \
	--use-service-account-credentials=true \
	--root-ca-file=$PKI/ca.crt --service-account-private-key-file=$PKI/service-account.key \
	--cluster-signing-cert-file=$PKI/ca.crt --cluster-signing-key-file=$PKI/ca.key \
	--horizontal-pod-autoscaler-sync-period=2s \
	--horizontal-pod-autoscaler-downscale-stabilization=10s \
	--horizontal-pod-autoscaler-initial-readiness-delay=1s
supervise kube-scheduler $BIN/kube-scheduler \
	--kubeconfig=$PKI/scheduler.kubeconfig --leader-elect=false --bind-address=127.0.0.1
touch $RUN/api-ready # nodes join now: a kubelet that asks too early waits long before it asks again

# What is started here never ends by itself; if it does, better no cluster than half of one.
wait -n || true
say "a node ended, and the cluster with it"
exit 1
