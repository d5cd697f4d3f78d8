#!/usr/bin/env bash
# Makes the Debian base image that the product's images stand on where no image registry can be reached: the packages
# that Debian marks essential, the C++ runtime and the certificate authorities; no apt, no manuals, no package lists.
# Elsewhere the Dockerfile takes the public Debian slim image. Kept as a tar in the cache.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

SUITE=bookworm
archive=$(base_archive)
[[ ! -e $archive ]] || exit 0
need_root base.sh

say "Making the Debian $SUITE base image (about a minute)"
mkdir -p "$(dirname "$archive")"
trap 'rm -f "$archive.new" "$archive.log"' EXIT
# Nothing in a container reads manuals and translations; licences (copyright files) stay.
# shellcheck disable=SC2016 # $1 is mmdebstrap's
mmdebstrap --format=tar --variant=essential --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
	--include=ca-certificates,libstdc++6,libgcc-s1 \
	--aptopt='APT::Install-Recommends "false"' \
	--dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/info/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-include=/usr/share/doc/*/copyright' \
	--customize-hook='rm -rf "$1"/var/cache/* "$1"/var/lib/apt "$1"/var/log/* "$1"/etc/resolv.conf "$1"/etc/hostname' \
	"$SUITE" "$archive.new" 2>"$archive.log" || {
	tail -n 20 "$archive.log" >&2
	die "mmdebstrap could not make the base image"
}
mv "$archive.new" "$archive"
say "  base image: $(size_of "$archive"), took $(elapsed)"
