//! Reads the command line, runs one command, prints its table. A failed request or a wrong answer is a failed exit status.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use torchmodel_bench::{
    archive::ModelFiles,
    args::{Arguments, Command, LoadArguments},
    load::{self, EncodedLoad, RunOptions},
    report::{CaseReport, table},
    tensor::Model,
    wire,
};

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Load(arguments) => load(&arguments),
        Command::Wire(arguments) => {
            let comparison = wire::compare(*arguments)?;
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
    let figures = load::run(&encoded, arguments.target(), &options)?;
    let case = CaseReport { name: arguments.wire.as_str().into(), servers: vec![("server".into(), Ok(vec![figures]))] };
    print!("{}", table(&[case], &generator.counters));
    Ok(ExitCode::SUCCESS)
}
