#!/usr/bin/env bash
# Builds the product's images from the Dockerfile and the files in target/image/ (made by `make image-files`), and loads
# them into every node of the local cluster if it is up: images.sh [operator|runtime|runtime-cuda]..., by default operator
# and runtime. Writes target/cluster/images.env. An image's tag is made from what goes into it: a changed binary is a new
# tag, so that pods never run an old image of the same name, and an unchanged one costs nothing.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

FILES=$REPO/target/image

main() {
	need_root images.sh
	[[ $# -gt 0 ]] || set -- operator runtime
	"$SCRIPTS/packages.sh"
	"$SCRIPTS/base.sh"
	lock 600
	mkdir -p "$IMAGES" "$CLUSTER"
	local target reference
	for target; do
		reference=$(reference_of "$target")
		build "$target" "$reference"
		load "$target" "$reference"
		remember "$target" "$reference"
	done
	say "Image names: $CLUSTER/images.env"
}

# What goes into an image, as paths below target/image.
contents_of() {
	case $1 in
	operator) printf '%s\n' bin/torchmodel-operator ;;
	runtime) printf '%s\n' bin/torchmodel-runtime lib ;;
	runtime-cuda) printf '%s\n' bin/torchmodel-runtime lib lib-cuda ;;
	*) die "no image '$1': there are operator, runtime and runtime-cuda" ;;
	esac
}

reference_of() {
	local hash contents
	mapfile -t contents < <(contents_of "$1")
	[[ ${#contents[@]} -gt 0 ]] || exit 1
	(cd "$FILES" 2>/dev/null && ls -d "${contents[@]}" &>/dev/null) ||
		die "$FILES lacks ${contents[*]}; run: make image-files"
	hash=$({
		base_hash
		cat "$REPO/Dockerfile" "$REPO/.dockerignore"
		cd "$FILES" && find -L "${contents[@]}" -type f -print0 | sort -z | xargs -0 sha256sum
	} | sha256sum | cut -c1-12)
	printf 'localhost/torchmodel-%s:dev-%s' "$1" "$hash"
}

archive_of() { printf '%s/%s.tar' "$IMAGES" "$(basename "${1/:/-}")"; }

build() {
	local target=$1 reference=$2 archive base started
	archive=$(archive_of "$reference")
	if [[ -e $archive ]]; then
		say "$reference: unchanged, $(size_of "$archive")"
		return
	fi
	started=$(now_ms)
	say "$reference: building"
	base=localhost/torchmodel-base:$(base_hash)
	own_buildah inspect --type image "$base" &>/dev/null || make_base "$base"
	rm -f "$archive.new"
	own_buildah build --quiet --layers --force-rm --isolation chroot --pull-never --format oci --timestamp 0 \
		--signature-policy "$SCRIPTS/policy.json" --ignorefile "$REPO/.dockerignore" --file "$REPO/Dockerfile" \
		--build-arg BINARIES=prebuilt --build-arg BASE_IMAGE="$base" \
		--target "$target" --tag "$reference" "$REPO" >"$IMAGES/$target.log" 2>&1 || {
		tail -n 20 "$IMAGES/$target.log" >&2
		die "building $reference failed"
	}
	own_buildah push --quiet --signature-policy "$SCRIPTS/policy.json" \
		"$reference" "oci-archive:$archive.new:$reference" 2>>"$IMAGES/$target.log"
	mv "$archive.new" "$archive"
	forget_older "$target" "$reference"
	say "  built in $(elapsed_since "$started"), $(size_of "$archive")"
}

make_base() {
	local container
	container=$(own_buildah from scratch)
	own_buildah add --quiet "$container" "$(base_archive)" / >/dev/null
	own_buildah config --cmd /bin/sh "$container"
	own_buildah commit --quiet --rm --format oci --timestamp 0 "$container" "$1" >/dev/null
}

# Earlier builds of the same image would fill the disk: half a gigabyte each.
forget_older() {
	local name=localhost/torchmodel-$1 archive other
	archive=$(archive_of "$2")
	for other in "$IMAGES/torchmodel-$1"-dev-*.tar; do
		[[ $other == "$archive" ]] || rm -f "$other"
	done
	own_buildah images --format '{{.Name}}:{{.Tag}}' |
		{ grep "^$name:" || true; } | { grep -vxF "$2" || true; } |
		while read -r other; do own_buildah rmi "$other" >/dev/null 2>&1 || true; done
	own_buildah rmi --prune >/dev/null 2>&1 || true
}

load() {
	local reference=$2 archive node started loaders=() loader
	cluster_init >/dev/null || return 0
	archive=$(archive_of "$reference")
	for file in "$STATE"/node-*.pid; do
		node=${file##*/node-}
		node=${node%.pid}
		[[ -z $(in_node "$node" ctr --namespace k8s.io images list --quiet "name==$reference") ]] || continue
		started=$(now_ms)
		{
			in_node "$node" ctr --namespace k8s.io images import - <"$archive" >>"$IMAGES/$1.log" 2>&1 ||
				die "loading $reference into node-$node failed; see $IMAGES/$1.log"
			say "  loaded into node-$node in $(elapsed_since "$started")"
		} &
		loaders+=($!)
	done
	for loader in "${loaders[@]}"; do wait "$loader"; done
}

# NAME_IMAGE=reference, one line for each image built so far.
remember() {
	local name=${1^^}_IMAGE
	name=${name//-/_}
	touch "$CLUSTER/images.env"
	{
		grep -v "^$name=" "$CLUSTER/images.env" || true
		printf '%s=%s\n' "$name" "$2"
	} | sort >"$CLUSTER/images.env.new"
	mv "$CLUSTER/images.env.new" "$CLUSTER/images.env"
}

main "$@"
