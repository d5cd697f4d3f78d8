#!/usr/bin/env bash
# One node of the local cluster: containerd, kubelet and kube-proxy in the node's network namespace and in a mount
# namespace of its own, where they find the folders of an ordinary machine. Started by inside.sh with the node's number.
# Invariant: kubelet finds the kernel settings it wants already "set", so it never writes the machine's own.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

# util-linux would note some mounts in /run/mount, which is the machine's or not there yet.
mount() { command mount --no-mtab "$@"; }

N=$1
NAME=node-$N
RUN=/run/torchmodel
HERE=$RUN/$NAME
PKI=$RUN/pki
echo $$ >"$HERE.pid"

# A machine's folders. What is large lies in the state folder: image layers, and the volumes of pods.
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir -p /mnt/torchmodel /mnt/netns /mnt/lock
mount --rbind $RUN /mnt/torchmodel
mount --move /mnt /run
mkdir -p "$HERE"/{containerd,kubelet,cni}
for folder in /var/lib /var/log /tmp; do mount -t tmpfs tmpfs $folder; done
for folder in containerd kubelet; do
	mkdir /var/lib/$folder
	mount --bind "$HERE/$folder" /var/lib/$folder
done

# kubelet sets these, and they are the whole machine's.
mkdir "$HERE/sysctl"
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
	kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
	file=/proc/sys/${setting%=*}
	[[ -e $file ]] || continue
	stand_in=$HERE/sysctl/${file##*/}
	echo "${setting#*=}" >"$stand_in"
	mount --bind "$stand_in" "$file"
done
mount --make-rshared / # kubelet hands mounts on to containers

sysctl --quiet --write net.ipv4.ip_forward=1

cat >"$HERE/containerd.toml" <<-END
	version = 3
	root = '/var/lib/containerd'
	state = '/run/containerd'
	disabled_plugins = [
	  'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.btrfs',
	  'io.containerd.snapshotter.v1.devmapper', 'io.containerd.snapshotter.v1.erofs',
	  'io.containerd.snapshotter.v1.zfs', 'io.containerd.tracing.processor.v1.otlp',
	  'io.containerd.internal.v1.tracing',
	]

	[plugins.'io.containerd.cri.v1.images']
	  snapshotter = 'overlayfs'
	[plugins.'io.containerd.cri.v1.images'.pinned_images]
	  sandbox = '$PAUSE_IMAGE'

	[plugins.'io.containerd.cri.v1.runtime']
	  restrict_oom_score_adj = true # root may lack CAP_SYS_RESOURCE
	  disable_apparmor = true       # profiles are loaded into the machine's kernel and stay
	[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
	  runtime_type = 'io.containerd.runc.v2'
	[plugins.'io.containerd.cri.v1.runtime'.cni]
	  bin_dirs = ['/usr/lib/cni']
	  conf_dir = '$HERE/cni'

	[plugins.'io.containerd.nri.v1.nri']
	  disable = true
END

cat >"$HERE/cni/10-bridge.conflist" <<-END
	{"cniVersion": "1.0.0", "name": "pods", "plugins": [
	  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
	   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$POD_NETWORK.$N.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
	  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END

# There is no DNS: a name server that refuses at once beats one that lets programs wait.
echo "nameserver $NETWORK.1" >"$HERE/resolv.conf"

cat >"$HERE/kubelet.yaml" <<-END
	apiVersion: kubelet.config.k8s.io/v1beta1
	kind: KubeletConfiguration
	authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
	authorization: {mode: Webhook}
	tlsCertFile: $PKI/$NAME.crt
	tlsPrivateKeyFile: $PKI/$NAME.key
	containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
	clusterDomain: cluster.local
	clusterDNS: [$NETWORK.1]
	resolvConf: $HERE/resolv.conf
	cgroupDriver: cgroupfs
	cgroupRoot: /$CGROUP_PREFIX$N
	enforceNodeAllocatable: []
	failCgroupV1: false
	failSwapOn: false
	oomScoreAdj: 0
	# No registry: an image that is collected is gone. And the disk is the developer's own.
	imageGCHighThresholdPercent: 100
	evictionHard: {memory.available: 50Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
	registerWithTaints: []
END

cat >"$HERE/kube-proxy.yaml" <<-END
	apiVersion: kubeproxy.config.k8s.io/v1alpha1
	kind: KubeProxyConfiguration
	mode: iptables
	hostnameOverride: $NAME
	clientConnection: {kubeconfig: $PKI/kube-proxy.kubeconfig}
	clusterCIDR: $POD_NETWORK.0.0/16
	# Pods behind one bridge would answer each other directly, past the address translation.
	iptables: {masqueradeAll: true}
	conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
	oomScoreAdj: 0
END

# The node's share of the machine. cgroup v1: one folder in each hierarchy; v2: one, with the controllers handed down.
if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
	for controller in $(</sys/fs/cgroup/cgroup.controllers); do
		echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
	done
	mkdir -p "/sys/fs/cgroup/$CGROUP_PREFIX$N"
else
	for hierarchy in /sys/fs/cgroup/*/; do
		[[ ! -L ${hierarchy%/} ]] || continue
		mkdir -p "$hierarchy$CGROUP_PREFIX$N"
		for file in cpuset.cpus cpuset.mems; do
			[[ ! -e $hierarchy$file ]] || cat "$hierarchy$file" >"$hierarchy$CGROUP_PREFIX$N/$file"
		done
	done
fi

supervise "containerd-$N" containerd --config "$HERE/containerd.toml" --log-level warn
until ctr version &>/dev/null; do sleep 0.1; done
ctr --namespace k8s.io images import $RUN/pause.tar >/dev/null
while [[ ! -e $RUN/api-ready ]]; do sleep 0.1; done
supervise "kubelet-$N" kubelet --config="$HERE/kubelet.yaml" --kubeconfig="$PKI/$NAME.kubeconfig" \
	--hostname-override="$NAME" --node-ip="$NETWORK.1$N" --root-dir=/var/lib/kubelet
supervise "kube-proxy-$N" kube-proxy --config="$HERE/kube-proxy.yaml"

wait -n || true
exit 1
