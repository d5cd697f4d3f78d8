//! The three subcommands, each from its arguments to its result.
//!
//! Called by [`crate::run`]. Invariant: standard output carries what was asked for and nothing else.

use std::sync::Arc;

use torchmodel_artifact as artifact;
use torchmodel_core::loader::Loader;
use torchmodel_crds::Failure;
use torchmodel_process::Signals;
use torchmodel_torch::{TorchLoader, devices};

use crate::{
    args::{Command, InspectArguments, PullArguments, ServeArguments},
    manifest::requested_models,
    misused, openmp,
    serve::serve,
    source::artifact_options,
};

/// Runs one subcommand.
pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(arguments) => {
            openmp::settle_spinning();
            let runtime = tokio()?;
            // First of all: the first process of a container is deaf to signals for which it has no handler.
            let signals = runtime
                .block_on(async { Signals::listen() })
                .map_err(|error| misused(format!("listening for signals: {error}")))?;
            // CUDA has to be loaded before anything else touches libtorch.
            let loader = loader(&arguments)?;
            let result = runtime.block_on(serve(*arguments, loader, signals));
            // Not shut down: a load that is not finished uses it until the process ends, which is right after this.
            std::mem::forget(runtime);
            result
        }
        Command::Inspect(arguments) => inspect(&arguments),
        Command::Pull(arguments) => tokio()?.block_on(pull(&arguments)),
    }
}

fn tokio() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| misused(format!("starting the async runtime: {error}")))
}

fn loader(arguments: &ServeArguments) -> Result<Arc<dyn Loader>, Failure> {
    let choice = arguments.device.parse().map_err(misused)?;
    Ok(Arc::new(TorchLoader::new(devices(choice)?)))
}

fn inspect(arguments: &InspectArguments) -> Result<(), Failure> {
    let path = &arguments.path;
    let source = torchmodel_crds::ModelSource::default();
    let options = artifact::ArtifactOptions {
        cache_dir: std::env::temp_dir(),
        credentials_dir: None,
        local_file: Some(path.clone()),
    };
    let artifact = tokio()?.block_on(artifact::pull(&source, &options)).map_err(|error| error.failure())?;
    let facts = torchmodel_torch::inspect(&artifact.file)?;
    let name = path.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned());
    print!("{}", crate::inspect::describe(&facts, &name, &artifact.sha256));
    Ok(())
}

async fn pull(arguments: &PullArguments) -> Result<(), Failure> {
    let options = artifact_options(&arguments.artifact);
    for config in requested_models(&arguments.files, arguments.artifact.artifact.as_deref())? {
        let artifact = artifact::pull(&config.source, &options).await.map_err(|error| error.failure())?;
        println!("{}", artifact.path.display());
    }
    Ok(())
}
