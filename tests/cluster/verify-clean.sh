#!/usr/bin/env bash
# Lists what a run of this checkout's local cluster or image build has left on the machine: processes, mounts, network
# namespaces, links, routes, iptables rules, cgroup folders, state. Exits 1 when there is anything. Changes nothing.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

need_root verify-clean.sh
leftovers=0
report() { # WHAT, lines on standard input
	local line
	while IFS= read -r line; do
		printf 'left over: %s: %s\n' "$1" "$line"
		leftovers=$((leftovers + 1))
	done
}

processes() {
	local folder
	for folder in /proc/[0-9]*; do
		if grep --quiet --null-data --line-regexp --fixed-strings "TORCHMODEL_CLUSTER=$ID" "$folder/environ" 2>/dev/null; then
			printf '%s %s\n' "${folder#/proc/}" "$(tr '\0' ' ' <"$folder/cmdline" 2>/dev/null | cut -c1-100)"
		fi
	done
}
addresses="${NETWORK//./\\.}\\.|${POD_NETWORK//./\\.}\\.[0-9]+\\.|10\\.96\\.0\\."

report process < <(processes)
report mount < <(cut -d' ' -f5 /proc/self/mountinfo | grep -F -e "$CLUSTER" -e "$CACHE/cluster" -e /run/torchmodel)
report "network namespace" < <(ip netns list | grep -E '^node-[0-9]( |$)')
report link < <(ip -oneline link show | grep -F -e "$LINK" -e fab0)
report route < <(ip -4 route show table all | grep -E "$addresses|$LINK")
for tool in iptables-save ip6tables-save; do
	report "$tool rule" < <("$tool" 2>/dev/null | grep -E "^-A.*($addresses|$LINK)")
done
report "cgroup folder" < <(find /sys/fs/cgroup -type d -path "*/$CGROUP_PREFIX*" 2>/dev/null)
report state < <(find "$STATE" "$CLUSTER"/{top.pid,init.pid,kubeconfig,s3.env} -maxdepth 0 2>/dev/null)

[[ $leftovers -eq 0 ]] || exit 1
say "Clean: no process, mount, network namespace, link, route, iptables rule, cgroup folder or state is left."
