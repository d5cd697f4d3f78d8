//! Which cluster, images and S3 server the tests use: environment variables that `tests/end-to-end.sh` sets.

use std::env;

use anyhow::{Result, bail};

/// What comes from the environment.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `OPERATOR_IMAGE`: image of the operator, as the cluster's nodes can pull it.
    pub operator_image: String,
    /// `RUNTIME_IMAGE`: image of the runtime.
    pub runtime_image: String,
    /// `S3_ENDPOINT`: URL of an S3 server that this machine and the pods reach.
    pub s3_endpoint: String,
    /// `S3_REGION`; us-east-1 when it is not set.
    pub s3_region: String,
    /// `S3_BUCKET`: a bucket that exists; "models", which examples/silero-vad.yaml names, when it is not set.
    pub s3_bucket: String,
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
}

impl Settings {
    /// Reads the environment. `None` when it names no image, so that nobody's cluster is touched by a plain `cargo test`; an
    /// error when it names only a part.
    pub fn from_env() -> Result<Option<Self>> {
        let optional = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        if optional("OPERATOR_IMAGE").is_none() {
            return Ok(None);
        }
        let names = ["KUBECONFIG", "RUNTIME_IMAGE", "S3_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        let missing: Vec<&str> = names.into_iter().filter(|name| optional(name).is_none()).collect();
        if !missing.is_empty() {
            bail!("OPERATOR_IMAGE is set, but not {}; tests/end-to-end.sh sets all of them", missing.join(", "));
        }
        let required = |name: &str| optional(name).unwrap_or_default();
        Ok(Some(Self {
            operator_image: required("OPERATOR_IMAGE"),
            runtime_image: required("RUNTIME_IMAGE"),
            s3_endpoint: required("S3_ENDPOINT"),
            s3_region: optional("S3_REGION").unwrap_or_else(|| "us-east-1".to_owned()),
            s3_bucket: optional("S3_BUCKET").unwrap_or_else(|| "models".to_owned()),
            access_key_id: required("AWS_ACCESS_KEY_ID"),
            secret_access_key: required("AWS_SECRET_ACCESS_KEY"),
        }))
    }
}
