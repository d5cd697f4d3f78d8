#!/usr/bin/env bash
# Exits 0 while the cluster of this checkout runs, and 1 otherwise, whatever files a killed run has left. Says and changes nothing.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

cluster_top >/dev/null
