//! Runs against a server on loopback that echoes, and that errs when it is told to.

use std::{error::Error as _, time::Duration};

use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::{
    fake::{self, Spoil},
    figures::Figure,
    load::Load,
    request::Wire,
    tensor::Model,
    wire::chain,
};

const BOTH: [Wire; 2] = [Wire::GrpcRaw, Wire::RestBinary];

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn options(requests: usize) -> RunOptions {
    RunOptions {
        threads: 2,
        cpus: None,
        bound: Bound::Requests(requests),
        warmup: Duration::ZERO,
        counters: vec!["none_total".into()],
    }
}

fn echo(wire: Wire, size_bytes: usize) -> Arc<EncodedLoad> {
    let load = Load { model: Model::Echo, wire, size_bytes, connections: 5, is_announcing_compression: false };
    Arc::new(EncodedLoad::new(load))
}

fn run_against(spoil: Spoil, load: &Arc<EncodedLoad>, options: &RunOptions) -> Result<Figures, RunError> {
    let runtime = runtime();
    let target = fake::start(&runtime, spoil);
    run(load, target, options)
}

#[test]
fn right_answers_of_every_size_give_figures() {
    for wire in BOTH {
        for size in [4, 1 << 10, 64 << 10, 2 << 20] {
            let figures = run_against(Arc::new(|_, body| Some(body)), &echo(wire, size), &options(3)).unwrap();
            assert!(figures.get(Figure::RequestsPerSecond) > 0.0);
            assert!(figures.get(Figure::P99Us) >= figures.get(Figure::P50Us));
            assert!(figures.get(Figure::InGbPerSecond) > 0.0 && figures.get(Figure::WakeUps) > 0.0);
            assert!(figures.counters[0].is_nan() && !figures.is_compressed);
        }
    }
}

#[test]
fn a_bound_in_requests_is_kept_on_each_connection() {
    let runtime = runtime();
    let target = fake::start(&runtime, Arc::new(|_, body| Some(body)));
    for wire in BOTH {
        let mut generator = Generator::open(&echo(wire, 64), target, &options(0)).unwrap();
        assert_eq!(generator.run(Bound::Requests(7)).unwrap().latencies_ns.len(), 35);
        // Time that is over already: each connection sends one all the same.
        assert_eq!(generator.run(Bound::Time(Duration::ZERO)).unwrap().latencies_ns.len(), 5);
        generator.close();
    }
}

#[test]
fn a_wrong_byte_fails_the_run() {
    // Warm-up is request 0; large answers are looked at on the first request of a phase and on the last.
    for (size, wrong) in [(1 << 10, 2), (64 << 10, 0), (64 << 10, 1), (64 << 10, 4)] {
        for wire in BOTH {
            let spoil = move |number, mut body: Vec<u8>| {
                if number == wrong {
                    *body.last_mut().unwrap() ^= 1;
                }
                Some(body)
            };
            let error = run_against(Arc::new(spoil), &echo(wire, size), &options(3)).unwrap_err();
            let text = chain(&error);
            assert!(text.contains(&format!("the answer to request {wrong} is wrong")), "{text}");
            assert!(text.contains("OUTPUT0 differs"), "{text}");
        }
    }
}

#[test]
fn a_wrong_length_fails_the_run_also_where_nothing_is_looked_at() {
    for wire in BOTH {
        let spoil = |number, mut body: Vec<u8>| {
            if number == 2 {
                body.push(0);
            }
            Some(body)
        };
        let error = run_against(Arc::new(spoil), &echo(wire, 64 << 10), &options(3)).unwrap_err();
        assert!(chain(&error).contains("the answer to request 2 is wrong: the answer has"), "{}", chain(&error));
    }
}

#[test]
fn a_refusal_fails_the_run_in_the_servers_words() {
    for (wire, status) in [(Wire::GrpcRaw, "grpc-status 14"), (Wire::RestBinary, "503")] {
        let spoil = |number, body| (number != 1).then_some(body);
        let error = run_against(Arc::new(spoil), &echo(wire, 1 << 10), &options(3)).unwrap_err();
        assert!(error.source().is_some());
        assert!(
            chain(&error).ends_with(&format!("the server refused a request with {status}: busy")),
            "{}",
            chain(&error)
        );
    }
}

#[test]
fn a_server_that_is_not_there_is_told() {
    let runtime = runtime();
    let mut target = fake::start(&runtime, Arc::new(|_, body| Some(body)));
    drop(runtime);
    target.pid = None;
    for wire in BOTH {
        let error = run(&echo(wire, 64), target, &options(1)).unwrap_err();
        assert!(chain(&error).contains("the connection failed"), "{}", chain(&error));
    }
}
