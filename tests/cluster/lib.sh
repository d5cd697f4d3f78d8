# shellcheck shell=bash
# What the scripts of the local cluster share: where things are, how they are reported, and how the
# cluster's one process is found again. Sourced by the other scripts, never run. It changes nothing.
# Invariant: a process is ours only when its recorded start time matches too, so a reused id is never killed.

# shellcheck disable=SC2034 # used by the scripts that source this file

# The user's own cluster, if there is one, is none of our business.
unset KUBECONFIG

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
REPO=$(cd "$SCRIPTS/../.." && pwd -P)
CACHE=$(realpath --canonicalize-missing "${TORCHMODEL_CACHE:-$REPO/target/cache}")
CLUSTER=$REPO/target/cluster
STATE=$CLUSTER/state
LOGS=$CLUSTER/logs
IMAGES=$REPO/target/images

# Names what a checkout leaves visible outside its namespaces: one network link and some cgroup folders.
ID=${TORCHMODEL_CLUSTER:-$(printf %s "$REPO" | sha256sum | cut -c1-6)} # set within the cluster, where paths differ
LINK=tm-$ID
CGROUP_PREFIX=torchmodel-$ID-node-

# The addresses inside. The control plane is beside the nodes, at .1; node N is .1N; we, outside, are .254.
NETWORK=172.30.0
POD_NETWORK=10.244
SERVICE_NETWORK=10.96.0.0/16
API=https://$NETWORK.1:6443
S3_ENDPOINT=http://$NETWORK.1:7070
S3_REGION=us-east-1
S3_BUCKET=models
PAUSE_IMAGE=localhost/torchmodel-pause:1

say() { printf '%s\n' "$*"; }
die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# A clock for the lines that tell how long something took.
now_ms() { date +%s%3N; }
STARTED_MS=$(now_ms)
elapsed() { elapsed_since "$STARTED_MS"; }
elapsed_since() {
	local ms=$(($(now_ms) - $1))
	printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100))
}
phase() { printf '[%7s] %s\n' "$(elapsed)" "$*"; }

need_root() {
	[[ $(id -u) -eq 0 ]] || die "$1 needs root (it makes namespaces and cgroups); run it with sudo"
}

hash_of() { cat -- "$@" | sha256sum | cut -c1-12; }
programs_folder() { printf '%s/cluster/%s' "$CACHE" "$(hash_of "$SCRIPTS"/programs/go.{mod,sum})"; }
versitygw_folder() { printf '%s/cluster/versitygw-%s' "$CACHE" "$(hash_of "$SCRIPTS"/versitygw/go.{mod,sum})"; }
pause_folder() { printf '%s/cluster/pause-%s' "$CACHE" "$(hash_of "$SCRIPTS"/pause/{main.go,go.mod})"; }
base_hash() { hash_of "$SCRIPTS/base.sh"; }
base_archive() { printf '%s/cluster/base-%s.tar' "$CACHE" "$(base_hash)"; }

# One at a time: up, down, and the loading of images.
lock() { # SECONDS_TO_WAIT
	mkdir -p "$REPO/target"
	exec 9>"$REPO/target/cluster.lock"
	flock --wait "$1" 9 || die "another up.sh, down.sh or images.sh of this checkout is running"
}

# Field 22 of /proc/PID/stat; the name before it may hold spaces, so count from the closing bracket. A process that has
# ended and that nobody has asked about yet (a zombie) counts as gone.
start_time() {
	local stat
	stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
	local fields
	read -ra fields <<<"${stat##*) }"
	[[ ${fields[0]} != Z ]] || return 1
	printf %s "${fields[19]}"
}

# record_process FILE PID, and the id again as long as that very process lives.
record_process() { printf '%s %s\n' "$2" "$(start_time "$2")" >"$1"; }
recorded_process() {
	local pid started
	[[ -r $1 ]] && read -r pid started <"$1" || return 1
	[[ -n $started && $(start_time "$pid") == "$started" ]] && printf %s "$pid"
}
# The cluster's top process (unshare), and its child, process 1 inside.
cluster_top() { recorded_process "$CLUSTER/top.pid"; }
cluster_init() { recorded_process "$CLUSTER/init.pid"; }

# buildah with a store of our own, in a mount namespace of its own: it leaves no mount behind, and what it would note in
# /var/lib (the digests of compressed layers) goes into the cache as well.
own_buildah() {
	local store=$CACHE/cluster/buildah
	mkdir -p "$store"/{store,run,var-lib,work}
	# shellcheck disable=SC2016 # expanded inside
	unshare --mount --propagation private bash -c '
		store=$0
		mount --no-mtab -t overlay -o "lowerdir=/var/lib,upperdir=$store/var-lib,workdir=$store/work" overlay /var/lib &&
			exec buildah --root "$store/store" --runroot "$store/run" --storage-driver overlay "$@"' "$store" "$@"
}
size_of() { du --apparent-size -h -- "$1" | cut -f1; }

# supervise NAME COMMAND...: keeps COMMAND running (inside the cluster); its output goes to logs/NAME.log.
supervise() {
	local name=$1
	shift
	{
		while :; do
			"$@" </dev/null &>>"/run/torchmodel/logs/$name.log" || true
			printf '%s %s ended; started again in a second\n' "$(date +%T)" "$name" >>/run/torchmodel/logs/cluster.log
			sleep 1
		done
	} &
}

# in_node N COMMAND...: runs a command where node N's containerd runs; its folders are the node's.
in_node() {
	local init
	init=$(cluster_init) || die "the cluster is not running"
	# shellcheck disable=SC2016 # expanded inside
	nsenter --target "$init" --mount --pid --net bash -c '
		export PATH=/run/torchmodel/bin:$PATH CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1
		pid=$(</run/torchmodel/node-$0.pid) && exec nsenter --target "$pid" --mount --net -- "$@"' "$@"
}
