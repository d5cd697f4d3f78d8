//! Where a model comes from: what the repository loads each configured model with.
//!
//! Called by `serve`, and for the options by `pull`. A load fetches and verifies the artifact on the async runtime, then brings it into
//! memory on the thread that the repository gave it. Invariant: a load that nobody wants any more stops fetching.

use std::sync::Arc;

use tokio::runtime::Handle;
use torchmodel_artifact::{self as artifact, ArtifactOptions, VerifiedArtifact};
use torchmodel_core::{
    loader::{Loader, ModelFiles},
    model_key::ModelVersion,
    repository::{LoadContext, LoadRequest, LoadedVersion, Progress},
};
use torchmodel_crds::{Failure, FailurePhase, FailureReason, ModelSource};

use crate::{args::ArtifactArguments, manifest::ServeConfig};

/// What every load of this process uses.
#[derive(Clone)]
pub struct Sources {
    /// Where artifacts are kept.
    pub options: ArtifactOptions,
    /// Brings them into memory.
    pub loader: Arc<dyn Loader>,
    /// Fetches them.
    pub runtime: Handle,
}

impl Sources {
    /// The model that `config` describes, as its first version.
    #[must_use]
    pub fn load_request(&self, config: ServeConfig) -> LoadRequest {
        let ServeConfig { source, model } = config;
        let (sources, config) = (self.clone(), model.clone());
        let load = Box::new(move |context: &LoadContext| {
            context.report(Progress::Fetching);
            let artifact = sources.fetch(&source, context)?;
            let model = config.name.as_str();
            tracing::info!(model, path = %artifact.path.display(), size_bytes = artifact.size_bytes, "loading");
            context.report(Progress::Loading);
            // What was verified is what is loaded, whatever became of its path.
            let files = ModelFiles { archive: Arc::clone(&artifact.file), path: artifact.path.clone() };
            let model = sources.loader.load(&files, &config)?;
            Ok(LoadedVersion { model, artifact_size_bytes: artifact.size_bytes, lease: Box::new(artifact) })
        });
        LoadRequest { version: ModelVersion::FIRST, config: model, load }
    }

    fn fetch(&self, source: &ModelSource, context: &LoadContext) -> Result<VerifiedArtifact, Failure> {
        self.runtime.block_on(async {
            tokio::select! {
                pulled = artifact::pull(source, &self.options) => pulled.map_err(|error| error.failure()),
                () = context.canceled() => {
                    let message = "unloaded before its artifact was there";
                    Err(Failure::new(FailurePhase::Fetch, FailureReason::FetchTimeout, message))
                }
            }
        })
    }
}

/// Where artifacts come from and go to, with the default cache folder filled in.
#[must_use]
pub fn artifact_options(arguments: &ArtifactArguments) -> ArtifactOptions {
    let user_cache = || {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(std::path::PathBuf::from);
        set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache"))).unwrap_or_else(std::env::temp_dir)
    };
    ArtifactOptions {
        cache_dir: arguments.cache_dir.clone().unwrap_or_else(|| user_cache().join("torchmodel")),
        credentials_dir: arguments.credentials_dir.clone(),
        local_file: arguments.artifact.clone(),
    }
}
