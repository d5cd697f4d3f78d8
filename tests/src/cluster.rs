//! What all tests share: the cluster, the chart on it, and a stock of models in the S3 bucket.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use kube::Client;

use crate::{
    Release, Settings, Stored,
    archive::{script, with_unknown_operator},
    bucket::Bucket,
    command::{root, run},
    reach::Reach,
};

/// Key of the model that examples/silero-vad.yaml names.
const SILERO_KEY: &str = "silero-vad/silero_vad.jit";

/// A cluster with the operator on it.
pub struct Cluster {
    /// An administrator's client.
    pub client: Client,
    /// The installed chart.
    pub release: Release,
    /// What the environment said.
    pub settings: Settings,
    /// Models that tests serve.
    pub stock: Stock,
    pub(crate) reach: Reach,
    pub(crate) run: String,
    bucket: Bucket,
}

/// Objects of the bucket, good and bad.
#[derive(Debug)]
pub struct Stock {
    /// Answers `2 * x`; takes FP32 of any shape.
    pub double: Stored,
    /// Answers `3 * x`.
    pub triple: Stored,
    /// The first half of `double`.
    pub truncated: Stored,
    /// A text.
    pub text: Stored,
    /// Calls an operator that no runtime has.
    pub unknown_operator: Stored,
    /// A URI at which nothing is.
    pub absent: String,
}

impl Cluster {
    /// Uploads the stock and installs the chart.
    pub async fn start(settings: Settings) -> Result<Self> {
        let client = Client::try_default().await.context("reading KUBECONFIG")?;
        let run = format!("{:x}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis());
        let bucket = Bucket::new(&settings, &run)?;
        let stock = Stock::upload(&bucket).await?;
        let reach = Reach::probe(&client).await.context("asking the API server")?;
        let release = Release::install(&settings, &format!("tm-{run}")).await?;
        Ok(Self { client, release, settings, stock, reach, run, bucket })
    }

    /// Removes what [`Self::start`] made.
    pub async fn finish(&self) -> Result<()> {
        let uninstalled = self.release.uninstall().await;
        let namespace = self.release.namespace();
        run("kubectl", &["delete", "namespace", namespace, "--timeout=120s"], "").await?;
        self.bucket.clear().await?;
        uninstalled
    }

    /// Whether connections lead to pods themselves, not through a forwarded port, which ends kept connections in its own way.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.reach == Reach::Direct
    }

    /// The last lines of the operator's log.
    pub async fn operator_log(&self) -> String {
        let deployment = format!("deployment/{}", self.release.deployment());
        let arguments = ["logs", "--namespace", self.release.namespace(), &deployment, "--tail=50"];
        run("kubectl", &arguments, "").await.unwrap_or_else(|error| error.to_string())
    }
}

impl Stock {
    async fn upload(bucket: &Bucket) -> Result<Self> {
        let multiplier = |factor: f32| {
            script("def forward(self, x: Tensor) -> Tensor:\n  return self.factor * x\n", &[("factor", factor)])
        };
        let double = Bytes::from(multiplier(2.0)?);
        let silero = root().join("target/demo/silero_vad.jit");
        let silero = std::fs::read(&silero).with_context(|| format!("{}: run `make demo-files`", silero.display()))?;
        bucket.put_at(SILERO_KEY, silero).await?;
        Ok(Self {
            truncated: bucket.put("truncated.pt", double.slice(..double.len() / 2)).await?,
            double: bucket.put("double.pt", double).await?,
            triple: bucket.put("triple.pt", multiplier(3.0)?).await?,
            text: bucket.put("notes.txt", "not a model, but a text\n").await?,
            unknown_operator: bucket.put("unknown-operator.pt", with_unknown_operator()?).await?,
            absent: bucket.absent(),
        })
    }
}
