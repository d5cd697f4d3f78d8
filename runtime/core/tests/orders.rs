//! The scheduler in many orders of its threads: shuttle runs the same code again and again and chooses who goes on at each lock,
//! wake-up and atomic.
//!
//! Needs the feature `shuttle`, which puts shuttle's primitives in place of the standard library's. Shown in each order: every
//! request that was taken is answered exactly once, its bytes are given back, and nobody waits for ever (shuttle fails a run in which
//! all threads wait). Bounded by the number of orders.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use shuttle::{future::block_on, scheduler::RandomScheduler, thread};
use torchmodel_core::{
    fake::{
        FakeModel,
        device::{Delays, FakeDevice},
    },
    inference::InferError,
    plan::{ExecutionPlan, HandOff, Threads},
    scheduler::{Reply, Scheduler},
    signature::CheckedInputs,
    tensor::{DataType, Tensor},
};

/// Orders that each test runs of each shape.
const ORDERS: usize = 300;
/// Stack of each thread; shuttle's own default is too small for what a start needs without optimisation.
const STACK_BYTES: usize = 256 << 10;

/// How a scheduler under test differs.
#[derive(Clone, Copy)]
struct Shape {
    instances: u32,
    max_batch_size: u32,
    max_queue: u32,
    is_asynchronous: bool,
    is_inline: bool,
    /// With four, threads of submitters get handles of their own.
    cpus: usize,
    may_spin: bool,
}

const PLAIN: Shape = Shape {
    instances: 1,
    max_batch_size: 1,
    max_queue: 8,
    is_asynchronous: false,
    is_inline: false,
    cpus: 2,
    may_spin: false,
};

/// Bytes of requests that are alive.
#[derive(Clone, Default)]
struct Alive(Arc<AtomicUsize>);

struct Counted(Alive);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        b"x"
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Alive {
    fn bytes(&self) -> Bytes {
        self.0.fetch_add(1, Ordering::SeqCst);
        Bytes::from_owner(Counted(self.clone()))
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

struct Subject {
    scheduler: Scheduler,
    alive: Alive,
}

impl Subject {
    fn start(shape: Shape) -> Arc<Self> {
        let device = if shape.is_asynchronous {
            FakeDevice::asynchronous(Delays::default())
        } else {
            FakeDevice::synchronous(Delays::default())
        };
        let model = FakeModel::identity("m", DataType::Uint8, &[-1, 1]).batching(shape.max_batch_size).on(&device);
        let model = model.cpus(shape.cpus);
        let model = model.spec(|spec| {
            spec.instances = (shape.cpus < 4).then_some(shape.instances);
            spec.limits = Some(torchmodel_crds::LimitsSpec { max_queue: Some(shape.max_queue), request_timeout: None });
        });
        let change = |plan: &mut ExecutionPlan| {
            assert_eq!(plan.spare_handles > 0, shape.cpus == 4);
            plan.threads = Threads::Fixed(1);
            let inline_below = if shape.is_inline { Duration::from_secs(3600) } else { Duration::ZERO };
            // Waiting without a lock is what shuttle cannot tell from doing nothing, so that it is over at once; what is before and
            // after it comes in every order.
            let spin = if shape.may_spin { Duration::from_nanos(1) } else { Duration::ZERO };
            plan.hand_off = HandOff { spin, inline_below };
        };
        let scheduler = model.start(change, |failure| panic!("{failure:?}")).unwrap();
        Arc::new(Self { scheduler, alive: Alive::default() })
    }

    fn submit(&self, deadline: Option<Instant>) -> Result<Reply, InferError> {
        let tensor = Tensor::new(DataType::Uint8, vec![1, 1], self.alive.bytes()).unwrap();
        self.scheduler.submit(CheckedInputs { tensors: vec![Some(tensor)], rows: 1, key: Some(0) }, deadline)
    }

    /// Ends it: everything is answered by then, and nothing is held.
    fn end(self: Arc<Self>) {
        self.scheduler.close();
        self.scheduler.join();
        assert_eq!(self.alive.count(), 0, "bytes of requests are held after the end");
        assert!(matches!(self.submit(None), Err(InferError::NotReady(_))));
    }
}

/// Reads a reply to its end, which must come after exactly one response.
fn read(mut reply: Reply) -> Result<(), InferError> {
    block_on(async move {
        let first = reply.next().await.expect("a request is answered");
        assert!(reply.next().await.is_none(), "a request is answered once");
        first.map(|answer| assert_eq!(answer.outputs[0].tensor.data()[..], *b"x"))
    })
}

fn each_shape() -> Vec<Shape> {
    vec![
        PLAIN,
        Shape { instances: 2, ..PLAIN },
        Shape { instances: 2, may_spin: true, ..PLAIN },
        Shape { max_batch_size: 2, ..PLAIN },
        Shape { is_asynchronous: true, max_batch_size: 2, ..PLAIN },
        Shape { is_inline: true, ..PLAIN },
        Shape { is_inline: true, instances: 2, max_batch_size: 2, may_spin: true, ..PLAIN },
        Shape { is_inline: true, cpus: 4, ..PLAIN },
    ]
}

fn explore(shape: Shape, run: fn(&Arc<Subject>)) {
    let mut config = shuttle::Config::new();
    config.stack_size = STACK_BYTES;
    let scheduler = RandomScheduler::new(ORDERS);
    shuttle::Runner::new(scheduler, config).run(move || {
        let subject = Subject::start(shape);
        run(&subject);
        subject.end();
    });
}

#[test]
fn every_request_is_answered_once_whoever_is_faster() {
    for shape in each_shape() {
        explore(shape, |subject| {
            let submitters: Vec<_> = (0..3)
                .map(|_| {
                    let subject = Arc::clone(subject);
                    thread::spawn(move || {
                        for _ in 0..2 {
                            assert_eq!(read(subject.submit(None).unwrap()), Ok(()));
                        }
                    })
                })
                .collect();
            for submitter in submitters {
                submitter.join().unwrap();
            }
        });
    }
}

#[test]
fn a_client_that_goes_away_at_any_moment_leaves_nothing_behind() {
    for shape in each_shape() {
        explore(shape, |subject| {
            let other = Arc::clone(subject);
            let gone = thread::spawn(move || {
                drop(other.submit(None));
                let reply = other.submit(None).unwrap();
                thread::yield_now();
                drop(reply);
            });
            assert_eq!(read(subject.submit(None).unwrap()), Ok(()));
            gone.join().unwrap();
        });
    }
}

#[test]
fn closing_at_any_moment_answers_what_was_taken_and_refuses_the_rest() {
    for shape in each_shape() {
        explore(shape, |subject| {
            let other = Arc::clone(subject);
            let submitter = thread::spawn(move || {
                (0..3).filter_map(|_| other.submit(None).ok()).for_each(|reply| assert_eq!(read(reply), Ok(())));
            });
            subject.scheduler.close();
            submitter.join().unwrap();
        });
    }
}

#[test]
fn a_full_queue_and_passed_deadlines_lose_nobody() {
    for shape in each_shape() {
        explore(Shape { max_queue: 1, ..shape }, |subject| {
            let submitters: Vec<_> = (0..3)
                .map(|index| {
                    let subject = Arc::clone(subject);
                    thread::spawn(move || {
                        let deadline = (index == 0).then(Instant::now);
                        match subject.submit(deadline).map(read) {
                            Ok(Ok(()) | Err(InferError::DeadlineExceeded(_))) | Err(InferError::Overloaded(_)) => {}
                            other => panic!("{other:?}"),
                        }
                    })
                })
                .collect();
            for submitter in submitters {
                submitter.join().unwrap();
            }
        });
    }
}
