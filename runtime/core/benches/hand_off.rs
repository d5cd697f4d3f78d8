//! What a tiny request costs between its submitter and an instance: thread woken, thread found looking, no thread at all.
//!
//! `cargo bench -p torchmodel-core` prints a line for each. The model is a function that takes no time, so that what is left are the
//! hand-offs. Measures, and asserts nothing.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use torchmodel_core::{
    fake::{FakeModel, join},
    inference::NamedTensor,
    plan::{ExecutionPlan, HandOff, Threads},
    scheduler::{Reply, Scheduler},
    signature::CheckedInputs,
    tensor::{DataType, Tensor},
};

const REQUESTS: usize = 20_000;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn wait(reply: Reply) {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut reply = pin!(reply);
    while reply.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        thread::park();
    }
}

fn scheduler(hand_off: HandOff) -> Scheduler {
    let model = FakeModel::identity("m", DataType::Fp32, &[-1]).compute(|inputs| {
        inputs.iter().map(|input| Ok(NamedTensor { name: String::new(), tensor: join(input)? })).collect()
    });
    let change = |plan: &mut ExecutionPlan| {
        plan.threads = Threads::Fixed(1);
        plan.hand_off = hand_off;
    };
    model.start(change, |failure| eprintln!("{failure:?}")).expect("a fake model starts")
}

fn request() -> CheckedInputs {
    let tensor = Tensor::new(DataType::Fp32, vec![16], vec![0; 64].into()).expect("16 values of 4 bytes");
    CheckedInputs { tensors: vec![Some(tensor)], rows: 1, key: None }
}

/// One caller; `pause` is what it does between two requests, as a client and its network would.
fn measure(name: &str, hand_off: HandOff, pause: Duration) {
    let scheduler = scheduler(hand_off);
    let mut times: Vec<Duration> = (0..REQUESTS)
        .map(|_| {
            let started = Instant::now();
            wait(scheduler.submit(request(), None).expect("an empty queue takes it"));
            let elapsed = started.elapsed();
            let until = Instant::now() + pause;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            elapsed
        })
        .collect();
    times.sort_unstable();
    println!(
        "{name:<34} p50 {:>7.2} us   p99 {:>7.2} us",
        times[REQUESTS / 2].as_secs_f64() * 1e6,
        times[REQUESTS * 99 / 100].as_secs_f64() * 1e6
    );
}

fn main() {
    let parked = HandOff { spin: Duration::ZERO, inline_below: Duration::ZERO };
    let spinning = HandOff { spin: Duration::from_micros(100), ..parked };
    let inline = HandOff { inline_below: Duration::from_micros(200), ..spinning };
    for pause in [Duration::ZERO, Duration::from_micros(50)] {
        println!("{} us between requests", pause.as_micros());
        measure("  a sleeping thread is woken", parked, pause);
        measure("  a thread looks for 100 us", spinning, pause);
        measure("  on the submitting thread", inline, pause);
    }
}
