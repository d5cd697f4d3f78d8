//! What a scheduler does when an instance can never work again. Batches, queues and deadlines are shown over the protocols.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::{
    metrics::Metrics,
    model_key::ModelVersion,
    tensor::{DataType, Tensor},
};

struct LostDevice;

impl Engine for LostDevice {
    fn start(&mut self) -> Result<Signature, Failure> {
        Ok(Signature::default())
    }

    fn run(&mut self, _: &[EngineInput]) -> Result<Execution, EngineError> {
        Err(EngineError::DeviceLost("it fell off the bus".to_owned()))
    }
}

/// A scheduler of that engine, and what it reports as fatal.
fn scheduler(engine: impl Engine + 'static) -> (Scheduler, mpsc::Receiver<Failure>) {
    let (report, fatal) = mpsc::channel();
    let config = SchedulerConfig {
        batcher: BatcherConfig { max_rows: 1, max_delay: Duration::ZERO, max_queue: 8 },
        model: "m".parse().unwrap(),
        metrics: Metrics::new().model(&"m".parse().unwrap(), ModelVersion::FIRST),
        on_fatal: Arc::new(move |failure| drop(report.send(failure))),
    };
    (Scheduler::start(vec![Box::new(engine)], config).unwrap().0, fatal)
}

fn inputs(data: Bytes) -> CheckedInputs {
    let shape = vec![i64::try_from(data.len()).unwrap()];
    let tensor = Tensor::new(DataType::Uint8, shape, data).unwrap();
    CheckedInputs { tensors: vec![Some(tensor)], rows: 1, key: None }
}

#[test]
fn a_lost_device_is_told_to_the_client_and_ends_the_process() {
    let (scheduler, fatal) = scheduler(LostDevice);
    let reply = scheduler.submit(inputs(Bytes::from_static(b"x")), None).unwrap();
    let error = reply.blocking_recv().unwrap().unwrap_err();
    assert_eq!(error, InferError::Internal("the device is lost: it fell off the bus".to_owned()));
    assert_eq!(fatal.recv().unwrap().message, "the device is lost: it fell off the bus");
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
        assert!(std::thread::current().name() != Some("instance-0"), "the input exploded");
    }
}

#[test]
fn a_thread_that_panics_is_told_and_its_requests_are_not_left_waiting() {
    let (scheduler, fatal) = scheduler(LostDevice);
    let reply = scheduler.submit(inputs(Bytes::from_owner(Explosive)), None).unwrap();
    drop(reply.blocking_recv());
    let messages: Vec<String> = [fatal.recv(), fatal.recv()].map(|failure| failure.unwrap().message).into();
    assert_eq!(messages, ["the device is lost: it fell off the bus", "instance 0 panicked; the log says where"]);
}
