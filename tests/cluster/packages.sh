#!/usr/bin/env bash
# Installs the Debian packages that the local cluster and the image build need, only those that are missing.
# Prints what it would install, and the command, when it isn't root.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

PACKAGES=(
	runc containernetworking-plugins iptables conntrack ethtool socat # what containerd, kubelet and kube-proxy call
	iproute2 util-linux procps                                        # ip; unshare, nsenter, flock
	buildah mmdebstrap                                                # images
	openssl curl ca-certificates                                      # certificates; questions to the API server and S3
)

missing=()
for package in "${PACKAGES[@]}"; do
	[[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

install="apt-get install --yes --no-install-recommends ${missing[*]}"
command -v apt-get >/dev/null || die "the local cluster needs Debian's packages ${missing[*]}, and there is no apt-get here"
[[ $(id -u) -eq 0 ]] || die "packages are missing; as root, run: apt-get update && $install"
say "Installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# Lists that are there may do; older ones may name packages that are gone.
$install >/tmp/torchmodel-apt.$$ 2>&1 || { apt-get update && $install; } >/tmp/torchmodel-apt.$$ 2>&1 || {
	tail -n 20 /tmp/torchmodel-apt.$$ >&2
	rm -f /tmp/torchmodel-apt.$$
	die "apt-get could not install ${missing[*]}"
}
rm -f /tmp/torchmodel-apt.$$
