//! What waits: bounds, deadlines, cancellation, the end, and running on the submitter's thread.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::{
    engine::EngineError,
    fake::join,
    inference::NamedTensor,
    plan::HandOff,
    tensor::{SharedData, TensorData},
};

/// A model that gives its input back once `gate` is open, with a queue of that size.
fn gated(gate: &Gate, max_queue: u32) -> FakeModel {
    let held = gate.clone();
    let model = FakeModel::identity("m", DataType::Uint8, &[-1, 1]).compute(move |inputs| {
        held.pass();
        inputs.iter().map(|input| Ok(NamedTensor { name: String::new(), tensor: join(input)? })).collect()
    });
    model.spec(|spec| {
        spec.limits = Some(torchmodel_crds::LimitsSpec { max_queue: Some(max_queue), request_timeout: None });
    })
}

#[test]
fn a_full_queue_first_gives_up_what_nobody_waits_for() {
    let gate = Gate::default();
    let _opens = Opens(gate.clone());
    let started = Started::of(gated(&gate, 2));
    let running = started.occupy(50);
    let expired = started.try_submit(row(1), Some(Instant::now())).unwrap();
    drop(started.submit(2));
    // Both places of the queue are taken, by a request that is expired and one that is cancelled.
    let replies = [started.submit(3), started.submit(4)];
    assert!(matches!(wait(expired), Err(InferError::DeadlineExceeded(_))), "told while the instance is busy");
    let refused = started.try_submit(row(5), None);
    assert!(matches!(refused, Err(InferError::Overloaded(text)) if text.contains("exceeds maximum queue size: 2")));
    gate.open();
    assert_eq!(value(wait(running)), Ok(50));
    assert_eq!(replies.map(|reply| value(wait(reply))), [Ok(3), Ok(4)]);
}

/// Bytes that count themselves.
struct Counted(Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        b"x"
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn a_cancelled_request_frees_its_bytes_while_the_instance_is_busy() {
    let gate = Gate::default();
    let _opens = Opens(gate.clone());
    let started = Started::of(gated(&gate, 8));
    let running = started.occupy(50);
    let alive = Arc::new(AtomicUsize::new(1));
    let reply = started.try_submit(Bytes::from_owner(Counted(Arc::clone(&alive))), None).unwrap();
    assert_eq!(alive.load(Ordering::SeqCst), 1);
    drop(reply);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
    gate.open();
    assert!(wait(running).is_ok());
}

#[test]
fn a_closed_scheduler_answers_what_waits_and_takes_no_more() {
    let gate = Gate::default();
    let _opens = Opens(gate.clone());
    let started = Started::of(gated(&gate, 8));
    let running = started.occupy(50);
    let waiting = started.submit(1);
    started.scheduler.close();
    assert!(matches!(started.try_submit(row(2), None), Err(InferError::NotReady(_))));
    gate.open();
    started.scheduler.join();
    assert_eq!([running, waiting].map(|reply| value(wait(reply))), [Ok(50), Ok(1)]);
}

#[test]
fn data_where_the_engine_cannot_read_it_is_refused_by_name() {
    let started = Started::of(FakeModel::identity("m", DataType::Uint8, &[-1]));
    let submit = |data: TensorData| {
        let tensor = Tensor::of(DataType::Uint8, vec![1], data).unwrap();
        started.scheduler.submit(CheckedInputs { tensors: vec![Some(tensor)], rows: 1, key: None }, None)
    };
    let region = SharedData { region: "r".into(), offset: 0, size_bytes: 1, mapping: Arc::new(()) };
    let error = submit(TensorData::Shared(region)).unwrap_err();
    assert!(error.to_string().starts_with("input 'input' for model 'm' lies in a shared-memory region"), "{error}");
    assert!(matches!(error, InferError::InvalidRequest(_)));
    assert!(wait(submit(TensorData::Host(row(3))).unwrap()).is_ok());
    assert!(wait(submit(TensorData::Pinned(row(3))).unwrap()).is_ok());
}

/// A model that notes the threads that it ran on, and whose runs all count as short.
fn inline(threads: &Arc<Mutex<Vec<String>>>, gate: &Gate) -> Started {
    let (seen, held) = (Arc::clone(threads), gate.clone());
    let model = FakeModel::identity("m", DataType::Uint8, &[-1, 1]).compute(move |inputs| {
        seen.lock().unwrap().push(thread::current().name().unwrap_or_default().to_owned());
        let tensor = join(&inputs[0])?;
        match tensor.data()[0] {
            200 => return Err(EngineError::DeviceLost("gone".into())),
            201 => panic!("as it was told to"),
            202 => held.pass(),
            _ => {}
        }
        Ok(vec![NamedTensor { name: String::new(), tensor }])
    });
    Started::planned(model, |plan| {
        plan.threads = Threads::Fixed(1);
        plan.hand_off = HandOff { spin: Duration::ZERO, inline_below: Duration::from_secs(60) };
    })
}

fn here() -> String {
    thread::current().name().unwrap().to_owned()
}

#[test]
fn a_model_that_proved_fast_runs_on_the_submitting_thread() {
    let threads = Arc::default();
    let started = inline(&threads, &Gate::default());
    // The first goes to the instance's thread, and teaches how long a request of that size takes.
    assert_eq!(value(wait(started.submit(1))), Ok(1));
    started.await_idle();
    assert_eq!(value(wait(started.submit(2))), Ok(2));
    let larger = started.try_submit(Bytes::from_static(&[3, 3]), None).unwrap();
    assert_eq!(value(wait(larger)), Ok(3));
    assert_eq!(*threads.lock().unwrap(), ["instance-0".to_owned(), here(), "instance-0".to_owned()]);
}

#[test]
fn a_model_whose_time_depends_on_values_never_runs_on_the_submitting_thread() {
    let run = |model: FakeModel| {
        let threads: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&threads);
        let started = Started::planned(
            model.compute(move |inputs| {
                seen.lock().unwrap().push(here());
                Ok(vec![NamedTensor { name: String::new(), tensor: join(&inputs[0])? }])
            }),
            |plan| {
                plan.threads = Threads::Fixed(1);
                // On a busy machine any run may take long.
                if !plan.hand_off.inline_below.is_zero() {
                    plan.hand_off.inline_below = Duration::from_secs(60);
                }
            },
        );
        for value in 0..8 {
            // Whatever a run takes here: to the queue it was over at once.
            started.scheduler.queue.learn_run(1, Duration::ZERO);
            started.await_idle();
            assert!(wait(started.submit(value)).is_ok());
        }
        threads.lock().unwrap().clone()
    };
    let model = || FakeModel::identity("m", DataType::Uint8, &[-1, 1]).cpus(4);
    assert_eq!(run(model().duration_depends_on_values()), vec!["instance-0"; 8]);
    assert!(run(model()).contains(&here()), "others do");
}

#[test]
fn a_run_that_held_up_its_submitter_counts_and_the_third_ends_it() {
    let threads = Arc::default();
    let started = inline(&threads, &Gate::default());
    started.scheduler.queue.learn_run(1, Duration::ZERO);
    for _ in 0..2 {
        started.scheduler.queue.learn_inline(Duration::from_millis(6));
    }
    started.await_idle();
    assert_eq!(value(wait(started.submit(1))), Ok(1));
    started.scheduler.queue.learn_inline(Duration::from_millis(6));
    started.scheduler.queue.learn_run(1, Duration::ZERO);
    assert_eq!(value(wait(started.submit(2))), Ok(2));
    assert_eq!(*threads.lock().unwrap(), [here(), "instance-0".to_owned()]);
}

#[test]
fn a_request_with_an_empty_tensor_does_not_run_on_the_submitting_thread() {
    let size_of = |shapes: &[&[i64]]| {
        let tensor = |shape: &&[i64]| {
            let count = usize::try_from(shape.iter().product::<i64>()).unwrap();
            Some(Tensor::new(DataType::Uint8, shape.to_vec(), vec![0; count].into()).unwrap())
        };
        size_bytes(&CheckedInputs { tensors: shapes.iter().map(tensor).collect(), rows: 1, key: None })
    };
    assert_eq!(size_of(&[&[1, 3], &[2]]), Some(5));
    assert_eq!(size_of(&[&[1, 3], &[0, 1_000_000_000]]), None);
    assert_eq!(size_of(&[]), Some(0));
}

#[test]
fn what_goes_wrong_on_the_submitting_thread_is_told_as_on_any_other() {
    let threads = Arc::default();
    let started = inline(&threads, &Gate::default());
    assert_eq!(value(wait(started.submit(1))), Ok(1));
    started.await_idle();
    assert!(matches!(wait(started.submit(201)), Err(InferError::Internal(text)) if text.contains("panicked")));
    assert_eq!(value(wait(started.submit(1))), Ok(1), "the instance goes on");
    assert!(matches!(wait(started.submit(200)), Err(InferError::Internal(text)) if text.contains("device is lost")));
    assert_eq!(threads.lock().unwrap()[1..], [here(), here(), here()]);
    assert_eq!(started.messages(), ["the device is lost: gone"]);
}

#[test]
fn requests_that_arrive_while_one_runs_on_its_submitters_thread_wait_for_the_instance() {
    let (threads, gate) = (Arc::default(), Gate::default());
    let _opens = Opens(gate.clone());
    let started = inline(&threads, &gate);
    assert_eq!(value(wait(started.submit(1))), Ok(1));
    started.await_idle();
    thread::scope(|scope| {
        let slow = scope.spawn(|| value(wait(started.submit(202))));
        while threads.lock().unwrap().len() < 2 {
            thread::yield_now();
        }
        let waiting = started.submit(3);
        gate.open();
        assert_eq!(value(wait(waiting)), Ok(3));
        assert_eq!(slow.join().unwrap(), Ok(202));
    });
    assert_eq!(threads.lock().unwrap()[2], "instance-0");
    started.scheduler.close();
    started.scheduler.join();
}

#[test]
fn quick_requests_of_several_threads_run_at_one_time_where_the_plan_has_handles_for_that() {
    let gate = Gate::default();
    let (held, entered) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
    let _opens = Opens(gate.clone());
    let seen = Arc::clone(&entered);
    let model = FakeModel::identity("m", DataType::Uint8, &[-1, 1]).cpus(4).compute(move |inputs| {
        let tensor = join(&inputs[0])?;
        if tensor.data()[0] == 202 {
            seen.fetch_add(1, Ordering::SeqCst);
            held.pass();
        }
        Ok(vec![NamedTensor { name: String::new(), tensor }])
    });
    let started = Started::planned(model, |plan| {
        assert_eq!((plan.placements.len(), plan.spare_handles), (1, 2));
        plan.threads = Threads::Fixed(1);
        plan.hand_off.inline_below = Duration::from_secs(60);
    });
    assert_eq!(value(wait(started.submit(1))), Ok(1));
    started.await_idle();
    thread::scope(|scope| {
        let running: Vec<_> = (0..3).map(|_| scope.spawn(|| value(wait(started.submit(202))))).collect();
        while entered.load(Ordering::SeqCst) < 3 {
            thread::yield_now();
        }
        let fourth = started.submit(4);
        assert_eq!(started.scheduler.queue.depth(), 1, "every handle is in use");
        gate.open();
        assert_eq!(value(wait(fourth)), Ok(4));
        for running in running {
            assert_eq!(running.join().unwrap(), Ok(202));
        }
    });
    started.scheduler.close();
    started.scheduler.join();
    assert!(matches!(started.try_submit(row(1), None), Err(InferError::NotReady(_))));
}

#[test]
fn a_slow_run_takes_its_size_off_the_submitting_thread() {
    let threads = Arc::default();
    let started = inline(&threads, &Gate::default());
    started.scheduler.queue.learn_run(1, Duration::ZERO);
    started.await_idle();
    assert_eq!(value(wait(started.submit(1))), Ok(1));
    started.scheduler.queue.learn_run(1, Duration::from_secs(61));
    assert_eq!(value(wait(started.submit(2))), Ok(2));
    assert_eq!(*threads.lock().unwrap(), [here(), "instance-0".to_owned()]);
}

/// Two instances that, once they have run something, look for more for as long as the test lasts.
fn spinning() -> Started {
    let model = gated(&opened(), 8).spec(|spec| spec.instances = Some(2));
    Started::planned(model, |plan| {
        plan.hand_off = HandOff { spin: Duration::from_secs(3600), inline_below: Duration::ZERO };
    })
}

fn opened() -> Gate {
    let gate = Gate::default();
    gate.open();
    gate
}

#[test]
fn a_process_that_was_never_asked_sleeps() {
    let started = spinning();
    started.await_idle();
    assert_eq!(started.scheduler.queue.spinning(), 0);
}

#[test]
fn one_instance_looks_for_more_after_a_request_and_the_end_stops_it() {
    let started = spinning();
    for value in 0..20 {
        let replies = [started.submit(value), started.submit(value)];
        assert!(replies.into_iter().all(|reply| wait(reply).is_ok()));
    }
    started.await_idle();
    assert_eq!(started.scheduler.queue.spinning(), 1, "the other sleeps");
    started.scheduler.close();
    started.scheduler.join();
}
