#!/usr/bin/env bash
# What cargo itself does not lint: every shell script of the repository (shfmt -s, shellcheck) and the dependencies
# (cargo-deny: licences, sources, bans; .cargo/deny.toml). `lint.sh format` rewrites the scripts in that style instead.
# Called by `make lint` and `make format`. The tools are pinned wheels, kept in the cache.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Installs the tools, once for each list of them, and puts them on PATH.
install_tools() {
	local list=tests/lint-tools.txt cache=${TORCHMODEL_CACHE:-$PWD/target/cache} folder part
	folder=$cache/lint-$(sha256sum "$list" | cut -c1-16)
	if [[ ! -d $folder ]]; then
		echo "lint: downloading the tools that $list pins, 10 MB"
		part=$folder.part.$$
		# shellcheck disable=SC2064 # the folder's name is local, so it goes in now
		trap "rm -rf '$part'" EXIT
		python3 -m pip install --quiet --root-user-action=ignore --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: \
			--target "$part" --requirement "$list"
		mv -T "$part" "$folder" 2>/dev/null || [[ -d $folder ]] # another one was faster
	fi
	PATH=$folder/bin:$PATH
}

# Every script, also one that git does not know yet.
find_scripts() {
	local file files=()
	while IFS= read -r -d '' file; do
		[[ ! -f $file ]] || files+=("$file")
	done < <(git ls-files -z --cached --others --exclude-standard)
	mapfile -t scripts < <(shfmt -f "${files[@]}")
	[[ ${#scripts[@]} -gt 0 ]] || {
		echo "lint: no scripts were found; is this a git checkout?" >&2
		exit 1
	}
}

install_tools
find_scripts
if [[ ${1-} == format ]]; then
	shfmt -s -w "${scripts[@]}"
	exit
fi
shfmt -s -d "${scripts[@]}" || {
	echo 'lint: to rewrite them, run: make format' >&2
	exit 1
}
shellcheck --external-sources --source-path=SCRIPTDIR --enable=require-double-brackets "${scripts[@]}"
cargo deny --locked check bans licenses sources
