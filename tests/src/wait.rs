//! Waits for conditions, by watches and never by sleeping, and says what did not come.

use std::{fmt::Debug, future::Future, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use futures::TryStreamExt as _;
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt as _, wait::await_condition, watcher},
};
use serde::de::DeserializeOwned;

/// Longest that anything here may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The result of `future`, or an error that says what did not happen.
pub async fn in_time<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(limit, future).await.map_err(|_| anyhow!("not within {limit:?}: {what}"))
}

/// The object, once `is_so` holds for it.
pub async fn eventually<K>(
    api: &Api<K>,
    name: &str,
    (what, limit): (&str, Duration),
    is_so: impl Fn(&K) -> bool,
) -> Result<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let condition = |object: Option<&K>| object.is_some_and(&is_so);
    match tokio::time::timeout(limit, Box::pin(await_condition(api.clone(), name, condition))).await {
        Ok(object) => object?.with_context(|| format!("{name} vanished while waiting for: {what}")),
        Err(_) => Err(anyhow!("not within {limit:?}: {what}; last seen: {:#?}", api.get_opt(name).await)),
    }
}

/// The first object that the selector admits and for which `is_so` holds.
pub async fn eventually_any<K>(
    api: &Api<K>,
    config: watcher::Config,
    what: &str,
    is_so: impl Fn(&K) -> bool,
) -> Result<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut objects = Box::pin(watcher(api.clone(), config).default_backoff().touched_objects());
    let first = async {
        loop {
            match objects.try_next().await {
                Ok(Some(object)) if is_so(&object) => return Some(object),
                Ok(None) => return None,
                // The watcher tries again by itself.
                Ok(Some(_)) | Err(_) => {}
            }
        }
    };
    in_time(what, PATIENCE, first).await?.with_context(|| format!("the watch ended before: {what}"))
}

/// Resolves once there is no such object.
pub async fn gone<K>(api: &Api<K>, name: &str) -> Result<()>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let is_gone = Box::pin(await_condition(api.clone(), name, |object: Option<&K>| object.is_none()));
    in_time(&format!("{name} is gone"), PATIENCE, is_gone).await??;
    Ok(())
}
