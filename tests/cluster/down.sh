#!/usr/bin/env bash
# Ends the local cluster: kills its one process, which takes all others and their mounts and networks with it, and
# removes what outlives them: the link outside, cgroup folders, the state folder. Works after a crash, too; kills only a
# process that up.sh recorded. Logs and built images stay. Options, for up.sh: --quiet, --locked (the caller has the lock).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

quiet=
locked=
for option; do
	case $option in
	--quiet) quiet=yes ;;
	--locked) locked=yes ;;
	*) die "down.sh knows --quiet and --locked, not $option" ;;
	esac
done

need_root down.sh
[[ $locked ]] || lock 60

found=
for name in top init; do
	if pid=$(recorded_process "$CLUSTER/$name.pid"); then
		found=yes
		kill -KILL "$pid" 2>/dev/null || true
	fi
done
# Process 1 inside ends last: the kernel waits there until all the others have ended.
deadline=$(($(now_ms) + 60000))
while cluster_init >/dev/null || cluster_top >/dev/null; do
	[[ $(now_ms) -lt $deadline ]] || die "process $(cluster_init || cluster_top) does not end although killed"
	sleep 0.05
done

# The kernel may keep a dead network for a minute, and this end of its link with it.
if [[ -e /sys/class/net/$LINK ]]; then
	found=yes
	ip link delete "$LINK" 2>/dev/null || [[ ! -e /sys/class/net/$LINK ]]
fi

cgroups() { find /sys/fs/cgroup -depth -type d -path "*/$CGROUP_PREFIX*" 2>/dev/null; }
for _ in {1..50}; do
	cgroups | xargs --no-run-if-empty rmdir 2>/dev/null || true
	[[ -n $(cgroups) ]] || break
	sleep 0.1
done

[[ ! -e $STATE ]] || found=yes
(cd "$CLUSTER" 2>/dev/null && rm -rf --one-file-system state bin top.pid init.pid kubeconfig s3.env) || true

[[ $quiet ]] || if [[ $found ]]; then
	say "The cluster is down, after $(elapsed). Logs are in $LOGS."
else
	say "No cluster was up."
fi
