#!/usr/bin/env bash
# Brings what the demo needs into target/demo: the model (from PyPI), two recordings (from Debian's alsa-utils) and a virtual
# environment with Triton's Python client. Does nothing when all is there.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/.." && pwd)
demo=$root/target/demo
sounds=(Front_Center.wav Noise.wav)
mkdir -p "$demo"

if [[ ! -f "$demo/silero_vad.jit" ]]; then
	echo "demo: downloading the model (silero-vad, 11 MB)"
	python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: \
		--dest "$demo/wheels" --requirement "$here/silero-vad.txt"
	python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read("silero_vad/data/silero_vad.jit"))' \
		"$demo"/wheels/silero_vad-*.whl >"$demo/silero_vad.jit.part"
	mv "$demo/silero_vad.jit.part" "$demo/silero_vad.jit"
	rm -rf "$demo/wheels"
fi

if [[ ! -f "$demo/${sounds[1]}" ]]; then
	installed=/usr/share/sounds/alsa
	if [[ ! -f "$installed/${sounds[0]}" ]]; then
		echo "demo: downloading the recordings (Debian's alsa-utils, 1 MB)"
		(
			cd "$demo"
			if ! apt-get download --quiet alsa-utils >/dev/null 2>&1; then
				[[ "$(id -u)" -ne 0 ]] || apt-get update --quiet --quiet
				apt-get download --quiet alsa-utils >/dev/null
			fi
			dpkg-deb --extract alsa-utils_*.deb alsa-utils
			rm alsa-utils_*.deb
		) || {
			echo "demo: no recordings: install Debian's package alsa-utils, or put two 48 kHz mono files ${sounds[*]} into $demo" >&2
			exit 1
		}
		installed=$demo/alsa-utils/usr/share/sounds/alsa
	fi
	for sound in "${sounds[@]}"; do cp "$installed/$sound" "$demo/$sound"; done
	rm -rf "$demo/alsa-utils"
fi

if [[ ! -f "$demo/client/ready" ]]; then
	echo "demo: installing the client (tritonclient) into target/demo/client"
	rm -rf "$demo/client"
	python3 -m venv "$demo/client"
	"$demo/client/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
	touch "$demo/client/ready"
fi
