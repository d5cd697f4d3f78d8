//! The S3 bucket that models come from.
//!
//! What tests upload gets keys of this run's own, which are deleted at the end; a key given in full stays.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::{
    ObjectStore as _, ObjectStoreExt as _,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path,
};
use sha2::{Digest as _, Sha256};

use crate::Settings;

/// An uploaded object.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its URI, `s3://BUCKET/KEY`.
    pub uri: String,
    /// SHA-256 of its bytes, 64 hexadecimal digits.
    pub sha256: String,
}

/// A connection to the bucket.
#[derive(Debug)]
pub struct Bucket {
    store: AmazonS3,
    name: String,
    prefix: String,
}

impl Bucket {
    /// The bucket of the settings; `run` makes this run's keys unlike those of any other.
    pub fn new(settings: &Settings, run: &str) -> Result<Self> {
        let store = AmazonS3Builder::new()
            .with_endpoint(&settings.s3_endpoint)
            .with_allow_http(true)
            .with_region(&settings.s3_region)
            .with_bucket_name(&settings.s3_bucket)
            .with_access_key_id(&settings.access_key_id)
            .with_secret_access_key(&settings.secret_access_key)
            .build()?;
        Ok(Self { store, name: settings.s3_bucket.clone(), prefix: format!("torchmodel-tests/{run}") })
    }

    /// Uploads a file of this run.
    pub async fn put(&self, name: &str, content: impl Into<Bytes>) -> Result<Stored> {
        self.put_at(&format!("{}/{name}", self.prefix), content).await
    }

    /// Uploads to a key given in full.
    pub async fn put_at(&self, key: &str, content: impl Into<Bytes>) -> Result<Stored> {
        let content = content.into();
        let sha256 = hex::encode(Sha256::digest(&content));
        let path = Path::from(key);
        let put = self.store.put(&path, content.into());
        put.await.with_context(|| format!("uploading s3://{}/{key}", self.name))?;
        Ok(Stored { uri: format!("s3://{}/{key}", self.name), sha256 })
    }

    /// URI of a key of this run at which nothing is.
    pub fn absent(&self) -> String {
        format!("s3://{}/{}/absent.pt", self.name, self.prefix)
    }

    /// Deletes this run's objects.
    pub async fn clear(&self) -> Result<()> {
        let objects: Vec<_> = self.store.list(Some(&Path::from(self.prefix.as_str()))).try_collect().await?;
        for object in objects {
            self.store.delete(&object.location).await?;
        }
        Ok(())
    }
}
