//! End-to-end tests on a real Kubernetes cluster, with the chart installed as a person installs it.
//!
//! `tests/end-to-end.sh` runs them. One release serves all; each test has a namespace of its own, so they run at the same time.
//! Without `OPERATOR_IMAGE` in the environment nothing is touched and each test counts as ignored.

mod chain;
mod drain;
mod failures;
mod hardening;
mod kubectl;
mod lifecycle;
mod refused;
mod update;

use std::{future::Future, pin::Pin, process::ExitCode, sync::Arc, time::Instant};

use libtest_mimic::{Arguments, Conclusion, Trial};
use tokio::runtime::Runtime;
use torchmodel_tests::{Cluster, Namespace, Settings, with_temp_namespace};

/// Tests that run at the same time unless `--test-threads` says otherwise: they wait most of the time.
const THREADS: usize = 5;

type Outcome<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;
/// Module, name and body of a test.
type Test = (&'static str, &'static str, for<'a> fn(Namespace<'a>) -> Outcome<'a>);

macro_rules! tests {
    ($($module:ident: $($name:ident),+;)+) => {
        [$($((stringify!($module), stringify!($name), |namespace| Box::pin($module::$name(namespace)))),+),+]
    };
}

/// The longest first.
const TESTS: &[Test] = &tests! {
    chain: the_example_answers_as_a_direct_call_does_over_both_protocols;
    update: a_bad_update_leaves_the_old_model_serving_and_a_correction_takes_over;
    drain: no_request_fails_while_pods_are_replaced;
    failures: absent_object, wrong_keys, missing_secret, other_digest, truncated_upload, text_instead_of_a_model,
        unknown_operator, unreachable_server;
    lifecycle: deletion_removes_everything, a_model_deleted_while_it_is_created_leaves_nothing,
        a_child_deleted_by_hand_comes_back, applying_again_and_restarting_the_operator_write_nothing;
    kubectl: columns_category_short_name_and_scale_work, explain_describes_the_fields;
    hardening: garbage_on_any_port_kills_nothing, pods_are_restricted_and_counted, the_operator_tells_its_metrics;
    refused: a_contradictory_manifest_is_refused_with_a_sentence;
};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let Some(settings) = settings.filter(|_| !arguments.list) else {
        let trials = TESTS.iter().map(|(module, name, _)| {
            Trial::test(format!("{module}::{name}"), || Err("it needs a cluster".into()))
                .with_kind("needs a cluster: make test-cluster")
                .with_ignored_flag(true)
        });
        return libtest_mimic::run(&arguments, trials.collect()).exit_code();
    };
    match on_cluster(&arguments, settings) {
        Ok(conclusion) => conclusion.exit_code(),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Installs the chart, runs the tests and removes everything again.
fn on_cluster(arguments: &Arguments, settings: Settings) -> anyhow::Result<Conclusion> {
    // reqwest leaves the choice to the program; nothing here uses TLS but the API server's client.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = Arc::new(Runtime::new()?);
    let started = Instant::now();
    let cluster = Arc::new(runtime.block_on(Cluster::start(settings))?);
    println!("chart installed and models uploaded after {:.1} s", started.elapsed().as_secs_f64());
    let trials = TESTS.iter().map(|&(module, name, test)| {
        let (runtime, cluster) = (Arc::clone(&runtime), Arc::clone(&cluster));
        Trial::test(format!("{module}::{name}"), move || {
            let started = Instant::now();
            let outcome =
                runtime.block_on(with_temp_namespace(&cluster, name, async |namespace| test(namespace).await));
            println!("{module}::{name}: {:.1} s", started.elapsed().as_secs_f64());
            outcome.map_err(|error| format!("{error:#}").into())
        })
    });
    let conclusion = libtest_mimic::run(arguments, trials.collect());
    runtime.block_on(cluster.finish())?;
    Ok(conclusion)
}
