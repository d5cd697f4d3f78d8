#!/usr/bin/env bash
# Puts a file into the local cluster's S3 server, through its S3 API: s3-put.sh FILE KEY. With --bucket it makes the
# bucket (up.sh does). The server and the credentials are those of target/cluster/s3.env.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

[[ -r $CLUSTER/s3.env ]] || die "no $CLUSTER/s3.env: the cluster is not up"
# shellcheck disable=SC1091 # written by up.sh
source "$CLUSTER/s3.env"

# s3 FILE URL: the credentials go by standard input, so that no list of processes shows them. This curl does not sign
# the digest of a body unless it is told; S3 wants it.
s3() {
	local status
	status=$(printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" |
		curl --config - --silent --show-error --output "$ANSWER" --write-out '%{http_code}' \
			--aws-sigv4 "aws:amz:$S3_REGION:s3" --header "x-amz-content-sha256: $(sha256sum <"$1" | cut -d' ' -f1)" \
			--upload-file "$1" "$2")
	[[ $status == 200 ]] || die "PUT $2 was answered with $status: $(cat "$ANSWER")"
}
ANSWER=$(mktemp)
trap 'rm -f "$ANSWER"' EXIT

if [[ ${1-} == --bucket ]]; then
	s3 /dev/null "$S3_ENDPOINT/$S3_BUCKET"
elif [[ $# -eq 2 ]]; then
	[[ -f $1 ]] || die "no file $1"
	[[ $2 =~ ^[A-Za-z0-9._/-]+$ ]] || die "the key '$2' has characters other than letters, digits and . _ / -"
	s3 "$1" "$S3_ENDPOINT/$S3_BUCKET/$2"
	say "s3://$S3_BUCKET/$2: $(size_of "$1")"
else
	die "usage: s3-put.sh FILE KEY"
fi
