//! Errors, panics and a lost device at each step, in batches of one and of many, with others under way.

use super::*;
use crate::{
    engine::{EngineError, Step},
    fake::{
        device::{Delays, Fault},
        join,
    },
    inference::NamedTensor,
};

const STEPS: [Step; 3] = [Step::Stage, Step::Launch, Step::Finish];
const DELAYS: Delays =
    Delays { stage: Duration::from_millis(1), compute: Duration::from_millis(5), finish: Duration::from_millis(1) };

/// Both kinds of device.
fn devices() -> [FakeDevice; 2] {
    [FakeDevice::asynchronous(DELAYS), FakeDevice::synchronous(DELAYS)]
}

/// What six requests were answered, and what was fatal.
struct Outcome {
    answers: Vec<Result<u8, InferError>>,
    fatal: Vec<String>,
}

/// Six requests that all wait while a first one is staged as batch 0, then run at most so many rows at a time.
fn ask_six(device: FakeDevice, max_batch_size: u32) -> Outcome {
    let gate = Gate::default();
    let held = gate.clone();
    let device = device.with_hook(move |_| held.pass());
    let started = Started::of(rows_on(&device, max_batch_size));
    let first = started.occupy(99);
    let replies: Vec<_> = (0..6).map(|value| started.submit(value)).collect();
    gate.open();
    drop(wait(first));
    let answers = replies.into_iter().map(|reply| value(wait(reply))).collect();
    Outcome { answers, fatal: started.messages() }
}

#[test]
fn an_error_in_any_step_reaches_its_request_alone() {
    for step in STEPS {
        for device in devices() {
            let fault = Fault::Error(EngineError::Failed("it broke".into()));
            let outcome = ask_six(device.with_fault(step, 2, fault), 1);
            let failed = Err(InferError::Internal("model 'm' failed: it broke".into()));
            assert_eq!(outcome.answers, [Ok(0), failed, Ok(2), Ok(3), Ok(4), Ok(5)], "{step:?}");
            assert!(outcome.fatal.is_empty());
        }
    }
}

#[test]
fn a_panic_in_any_step_is_an_error_and_the_instance_goes_on() {
    for step in STEPS {
        for device in devices() {
            let Outcome { answers, fatal } = ask_six(device.with_fault(step, 2, Fault::Panic), 1);
            assert!(
                matches!(&answers[1], Err(InferError::Internal(text)) if text.contains("the engine panicked")),
                "{step:?}: {answers:?}"
            );
            assert_eq!(answers.iter().flatten().copied().collect::<Vec<_>>(), [0, 2, 3, 4, 5]);
            assert!(fatal.is_empty());
        }
    }
}

#[test]
fn a_failed_batch_is_run_again_in_halves_and_no_request_is_lost() {
    for step in STEPS {
        for device in devices() {
            // Batch 1 is all six; 2 its first half, which fails too and is cut once more.
            let fault = || Fault::Error(EngineError::OutOfMemory("too much".into()));
            let device = device.with_fault(step, 1, fault()).with_fault(step, 2, fault());
            assert_eq!(ask_six(device.clone(), 8).answers, [0, 1, 2, 3, 4, 5].map(Ok), "{step:?}");
            let calls = device.calls();
            let staged = |rows| calls.iter().filter(|call| (call.step, call.rows) == (Step::Stage, rows)).count();
            assert_eq!([staged(6), staged(3), staged(2), staged(1)], [1, 2, 1, 2], "{calls:?}");
        }
    }
}

/// A model that gives its input back unless `fails` says otherwise, and notes the rows of each run.
fn noting(
    runs: &Arc<Mutex<Vec<usize>>>,
    gate: &Gate,
    fails: impl Fn(&[u8]) -> Option<EngineError> + Send + Sync + 'static,
) -> FakeModel {
    let (runs, gate) = (Arc::clone(runs), gate.clone());
    FakeModel::identity("m", DataType::Uint8, &[-1, 1]).batching(16).compute(move |inputs| {
        gate.pass();
        let tensor = join(&inputs[0])?;
        runs.lock().unwrap().push(tensor.data().len());
        match fails(tensor.data()) {
            Some(error) => Err(error),
            None => Ok(vec![NamedTensor { name: String::new(), tensor }]),
        }
    })
}

#[test]
fn one_bad_request_of_sixteen_costs_a_few_runs_and_not_sixteen() {
    let (runs, gate) = (Arc::default(), Gate::default());
    let model = noting(&runs, &gate, |data| data.contains(&7).then(|| EngineError::Refused("seven".into())));
    let started = Started::of(model);
    let first = started.occupy(100);
    let replies: Vec<_> = (0..16).map(|value| started.submit(value)).collect();
    gate.open();
    assert_eq!(value(wait(first)), Ok(100));
    for (index, reply) in (0..).zip(replies) {
        let answer = value(wait(reply));
        assert_eq!(answer.is_err(), index == 7, "{index}: {answer:?}");
    }
    let runs = runs.lock().unwrap();
    assert_eq!(runs.len() - 1, 1 + 2 * 4, "the batch, and two halves at each of four levels: {runs:?}");
}

#[test]
fn requests_that_are_cancelled_or_expire_are_not_run_again() {
    let (runs, gate) = (Arc::default(), Gate::default());
    let given_up = Arc::new(Mutex::new(None::<Vec<Reply>>));
    let held = Arc::clone(&given_up);
    let model = noting(&runs, &gate, move |data| {
        (data.len() > 1).then(|| {
            // While the batch runs and fails, some of its requests are given up.
            drop(held.lock().unwrap().take());
            EngineError::Failed("batch".into())
        })
    });
    let started = Started::of(model);
    let first = started.occupy(9);
    let mut replies: Vec<_> = (0..4).map(|value| started.submit(value)).collect();
    let last = replies.pop().unwrap();
    *given_up.lock().unwrap() = Some(replies);
    gate.open();
    assert_eq!(value(wait(first)), Ok(9));
    assert_eq!(value(wait(last)), Ok(3));
    assert_eq!(*runs.lock().unwrap(), [1, 4, 1]);
}

#[test]
fn a_model_whose_rows_depend_on_one_another_is_not_batched_any_more() {
    let (runs, gate): (Arc<Mutex<Vec<usize>>>, _) = (Arc::default(), Gate::default());
    let (seen, held) = (Arc::clone(&runs), gate.clone());
    let model = FakeModel::identity("m", DataType::Uint8, &[-1, 1]).batching(4).compute(move |inputs| {
        held.pass();
        let tensor = join(&inputs[0])?;
        seen.lock().unwrap().push(tensor.data().len());
        let one = Tensor::new(DataType::Uint8, vec![1, 1], tensor.data().slice(..1)).unwrap();
        Ok(vec![NamedTensor { name: String::new(), tensor: one }])
    });
    let started = Started::of(model);
    let first = started.occupy(9);
    let replies: Vec<_> = (0..8).map(|value| started.submit(value)).collect();
    gate.open();
    assert_eq!(value(wait(first)), Ok(9));
    for (index, reply) in (0..).zip(replies) {
        assert_eq!(value(wait(reply)), Ok(index));
    }
    assert_eq!(*runs.lock().unwrap(), [1, 4, 1, 1, 1, 1, 1, 1, 1, 1], "one batch was enough to know");
}

#[test]
fn a_device_lost_in_any_step_is_told_to_its_clients_and_ends_the_process_once() {
    for step in STEPS {
        for mut device in devices() {
            for batch in 0..8 {
                device = device.with_fault(step, batch, Fault::Error(EngineError::DeviceLost("it fell off".into())));
            }
            let Outcome { answers, fatal } = ask_six(device, 2);
            let lost = InferError::Internal("the device is lost: it fell off".into());
            assert!(answers.iter().all(|answer| *answer == Err(lost.clone())), "{step:?}: {answers:?}");
            assert_eq!(fatal, ["the device is lost: it fell off"], "{step:?}");
        }
    }
}

#[test]
fn a_batch_that_is_cancelled_while_it_is_staged_is_never_launched() {
    let gate = Gate::default();
    let given_up = Arc::new(Mutex::new(None::<Reply>));
    let (held, cancelled) = (gate.clone(), Arc::clone(&given_up));
    let device = FakeDevice::asynchronous(DELAYS).with_hook(move |call| {
        held.pass();
        // Batch 2 is staged by now, since two others are launched.
        if (call.step, call.batch) == (Step::Finish, 0) {
            drop(cancelled.lock().unwrap().take());
        }
    });
    let started = Started::of(rows_on(&device, 1));
    let mut replies: Vec<_> = (0..4).map(|value| started.submit(value)).collect();
    *given_up.lock().unwrap() = Some(replies.remove(2));
    gate.open();
    for (expected, reply) in [0, 1, 3].into_iter().zip(replies) {
        assert_eq!(value(wait(reply)), Ok(expected));
    }
    let calls = device.calls();
    let has = |step| calls.iter().any(|call| (call.step, call.batch) == (step, 2));
    assert!(has(Step::Stage) && !has(Step::Launch) && !has(Step::Finish), "{calls:?}");
}

/// Panics on the thread that gives the data back, outside the engine.
struct Explosive;

impl AsRef<[u8]> for Explosive {
    fn as_ref(&self) -> &[u8] {
        b"x"
    }
}

impl Drop for Explosive {
    fn drop(&mut self) {
        assert!(thread::current().name() != Some("instance-0"), "the input exploded");
    }
}

#[test]
fn a_thread_that_panics_is_told_and_its_requests_are_not_left_waiting() {
    let lost = Fault::Error(EngineError::DeviceLost("it fell off the bus".into()));
    let device = FakeDevice::synchronous(DELAYS).with_fault(Step::Launch, 0, lost);
    let started = Started::of(rows_on(&device, 1));
    let reply = started.try_submit(Bytes::from_owner(Explosive), None).unwrap();
    assert!(wait(reply).is_err());
    let next = || started.fatal.lock().unwrap().recv().unwrap().message;
    let messages = [next(), next()];
    assert_eq!(messages, ["the device is lost: it fell off the bus", "instance 0 panicked; the log says where"]);
    // Nobody is left to answer, and that is told at once.
    let late = started.try_submit(row(1), None).map(wait);
    assert!(matches!(late, Err(InferError::NotReady(_)) | Ok(Err(InferError::Internal(_)))), "{late:?}");
}
