//! Reads the command line, runs one command, prints its table. A failed request or a wrong answer is a failed exit status.

use std::{
    process::{ExitCode, exit},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};
use torchmodel_bench::{
    archive::ModelFiles,
    args::{Arguments, Command, LoadArguments},
    load::{EncodedLoad, RunOptions},
    measure,
    report::{CaseReport, table},
    server::RunningServers,
    tensor::Model,
    wire,
};

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Load(arguments) => load(&arguments),
        Command::Wire(arguments) => {
            let running = Arc::default();
            end_with_signals(&running)?;
            let comparison = wire::compare(*arguments, &running)?;
            print!("{}", comparison.text);
            Ok(if comparison.is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Models(arguments) => {
            for model in Model::ALL {
                let files = ModelFiles::write(model, &arguments.folder).context("writing the models")?;
                println!("{}", files.config.display());
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Ends the servers, and this program, when it is told to end.
fn end_with_signals(running: &Arc<RunningServers>) -> Result<()> {
    let running = Arc::clone(running);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut terminate = {
        let _context = runtime.enter();
        signal(SignalKind::terminate())?
    };
    thread::spawn(move || {
        let code = runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => 143,
                _ = tokio::signal::ctrl_c() => 130,
            }
        });
        running.end();
        eprintln!("torchmodel-bench: ended by a signal; there is no table");
        exit(code);
    });
    Ok(())
}

fn load(arguments: &LoadArguments) -> Result<ExitCode> {
    let generator = &arguments.generator;
    let options = RunOptions {
        threads: wire::threads(generator.threads, generator.cpus_generator.as_ref())?,
        cpus: generator.cpus_generator.clone(),
        bound: arguments.bound(),
        warmup: Duration::from_millis(300),
        counters: generator.counters.clone(),
    };
    let encoded = Arc::new(EncodedLoad::new(arguments.load()));
    let figures = measure::run(&encoded, arguments.target(), &options)?;
    let case = CaseReport { name: arguments.wire.as_str().into(), servers: vec![("server".into(), Ok(vec![figures]))] };
    print!("{}", table(&[case], &generator.counters));
    Ok(ExitCode::SUCCESS)
}
