#!/usr/bin/env bash
# Gets everything that the local cluster needs and does not change from run to run: Debian packages, the programs,
# the base image. Quick when all is there. Called by up.sh and images.sh; can be called by itself beforehand.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

"$SCRIPTS/packages.sh"
"$SCRIPTS/programs.sh"
"$SCRIPTS/base.sh"
