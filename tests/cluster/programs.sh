#!/usr/bin/env bash
# Builds, from pinned Go modules, the programs that make up the local cluster: Kubernetes, etcd, containerd, helm
# (programs/go.mod), the S3 server (versitygw/go.mod) and the pause program. Each set is built once into a folder of the
# cache that is named after its sources, and appears there only when complete.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

KUBERNETES_VERSION=v1.37.2 # as in programs/go.mod; Go cannot stamp it by itself, and clients would see v0.0.0
VERSION_PACKAGE=k8s.io/component-base/version
STAMP="-X $VERSION_PACKAGE.gitVersion=$KUBERNETES_VERSION -X $VERSION_PACKAGE.gitMajor=1 -X $VERSION_PACKAGE.gitMinor=37"

# build WHAT SOURCE_FOLDER DESTINATION LINKER_FLAGS PACKAGE: progress every 30 s, own build cache, which is deleted.
build() {
	local what=$1 source=$2 destination=$3 flags=$4 package=$5 total started pid
	[[ ! -d $destination ]] || return 0
	command -v go >/dev/null || die "building $what needs Go 1.26 or newer on the PATH"
	grep -q "^[[:space:]]*k8s.io/kubernetes $KUBERNETES_VERSION" "$SCRIPTS/programs/go.mod" ||
		die "programs.sh names Kubernetes $KUBERNETES_VERSION and programs/go.mod another"
	mkdir -p "$(dirname "$destination")"
	WORK=$(mktemp -d "$destination.building-XXXXXX")
	mkdir "$WORK/bin" "$WORK/tmp"
	started=$(now_ms)
	say "Building $what into $destination"
	export GOFLAGS=-buildvcs=false GOCACHE=$WORK/gocache GOTMPDIR=$WORK/tmp
	say "  fetching modules"
	(cd "$source" && go mod download) >"$WORK/log" 2>&1 || failed "$what" "$WORK/log"
	total=$(cd "$source" && go list -deps "$package" 2>/dev/null | wc -l)
	(cd "$source" && exec nice -n 5 go build -v -trimpath -ldflags "-s -w $flags" -o "$WORK/bin/" "$package") >"$WORK/log" 2>&1 &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		for _ in {1..30}; do
			sleep 1
			kill -0 "$pid" 2>/dev/null || break
		done
		say "  $(elapsed_since "$started"): $(wc -l <"$WORK/log") of about $total packages compiled, $(find "$WORK/bin" -type f | wc -l) programs linked"
	done
	wait "$pid" || failed "$what" "$WORK/log"
	[[ ! -e $WORK/bin/server ]] || mv "$WORK/bin/server" "$WORK/bin/etcd"
	mv --no-target-directory "$WORK/bin" "$destination"
	say "  $what: done in $(elapsed_since "$started"), $(du -sh "$destination" | cut -f1)"
	rm -rf "$WORK"
}

failed() {
	tail -n 20 "$2" >&2
	die "building $1 failed"
}

WORK=
trap '[[ -z $WORK ]] || rm -rf "$WORK"' EXIT
# A build that was cut off by force cannot clean up after itself.
find "$CACHE/cluster" -maxdepth 1 -name '*.building-*' -mmin +180 -exec rm -rf {} + 2>/dev/null || true

[[ -d $(programs_folder) ]] ||
	say "The first time takes about 13 minutes on two cores, and 5 GB of disk while it runs; later runs find the result."
build "Kubernetes, etcd, containerd and helm" "$SCRIPTS/programs" "$(programs_folder)" "$STAMP" tool
build "versitygw (S3 server)" "$SCRIPTS/versitygw" "$(versitygw_folder)" "" tool
build "pause" "$SCRIPTS/pause" "$(pause_folder)" "" .

# One folder with all of them, for tests that start single programs themselves.
mkdir -p "$REPO/target/programs"
ln -sf "$(programs_folder)"/* "$(versitygw_folder)"/* "$REPO/target/programs/"
