//! Several models and versions in one process: swaps, failures and ends, each without disturbing the others.

use std::sync::{
    Arc, Condvar, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
    mpsc,
};

use torchmodel_crds::{DataType, FailurePhase, FailureReason};

use super::*;
use crate::{
    engine::EngineError,
    fake::FakeModel,
    inference::{InferRequest, InferResponse, NamedTensor, Parameters},
    tensor::Tensor,
};

/// Holds whoever passes until it is opened.
#[derive(Default)]
struct Gate {
    is_open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        drop(self.changed.wait_while(self.is_open.lock().unwrap(), |is_open| !*is_open).unwrap());
    }
}

fn repository() -> ModelRepository {
    ModelRepository::new(RepositoryOptions::new(Metrics::new()))
}

fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

fn version(number: u64) -> ModelVersion {
    number.to_string().parse().unwrap()
}

fn key(text: &str, number: u64) -> ModelKey {
    ModelKey { name: name(text), version: version(number) }
}

/// A model `m` whose one output is the byte `answer`.
fn answering(answer: u8) -> FakeModel {
    FakeModel::new("m").output("y", DataType::Uint8, &[1]).compute(move |_| {
        let tensor = Tensor::new(DataType::Uint8, vec![1], vec![answer].into());
        Ok(vec![NamedTensor { name: "y".into(), tensor: tensor.map_err(|e| EngineError::Failed(e.to_string()))? }])
    })
}

/// A load of `m` that fails.
fn failing(number: u64) -> LoadRequest {
    let failure = Failure::new(FailurePhase::Load, FailureReason::NotTorchScript, "it is a picture");
    LoadRequest { load: Box::new(|_| Err(failure)), ..answering(0).into_request(version(number)).unwrap() }
}

/// A load of `m` that waits at `gate`.
fn held(number: u64, gate: &Arc<Gate>) -> LoadRequest {
    let request = answering(u8::try_from(number).unwrap()).into_request(version(number)).unwrap();
    let (load, gate) = (request.load, Arc::clone(gate));
    let load: Load = Box::new(move |context| {
        context.report(Progress::Loading);
        gate.pass();
        load(context)
    });
    LoadRequest { load, ..request }
}

async fn load(repository: &ModelRepository, model: FakeModel, number: u64) {
    repository.load(model.into_request(version(number)).unwrap()).unwrap().wait().await.unwrap();
}

fn request(number: Option<u64>) -> InferRequest {
    InferRequest {
        model: name("m"),
        version: number.map(version),
        id: String::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        parameters: Parameters::new(),
        deadline: None,
    }
}

async fn ask(repository: &ModelRepository, number: Option<u64>) -> Result<InferResponse, InferError> {
    let request = request(number);
    repository.get(&request.model, request.version)?.infer(request).await
}

async fn answer(repository: &ModelRepository, number: Option<u64>) -> u8 {
    ask(repository, number).await.unwrap().outputs[0].tensor.data()[0]
}

fn states(repository: &ModelRepository) -> Vec<(u64, Step)> {
    let step = |state: &VersionState| match state {
        VersionState::Loading(_) => Step::Loading,
        VersionState::Ready => Step::Ready,
        VersionState::Unloading => Step::Unloading,
        VersionState::Failed(_) => Step::Failed,
    };
    repository.index().iter().map(|entry| (entry.key.version.get(), step(&entry.state))).collect()
}

#[tokio::test]
async fn a_request_without_a_version_gets_the_newest_that_is_ready() {
    let repository = repository();
    load(&repository, answering(2), 2).await;
    load(&repository, answering(1), 1).await;
    let gate = Arc::new(Gate::default());
    let third = repository.load(held(3, &gate)).unwrap();
    assert_eq!((answer(&repository, None).await, answer(&repository, Some(1)).await), (2, 1));
    assert_eq!(ask(&repository, None).await.unwrap().version, version(2));
    let error = ask(&repository, Some(3)).await.unwrap_err();
    assert_eq!(error, InferError::NotReady("model 'm' is loading; try again later".into()));
    let error = ask(&repository, Some(4)).await.unwrap_err();
    assert_eq!(error, InferError::NotFound("Request for unknown model: 'm' version 4 is not found".into()));
    gate.open();
    third.wait().await.unwrap();
    assert_eq!(answer(&repository, None).await, 3);
    repository.unload(&name("m"), Some(version(3))).unwrap();
    assert_eq!(answer(&repository, None).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_under_load_loses_no_request() {
    let repository = Arc::new(repository());
    load(&repository, answering(1), 1).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (repository, is_over) = (Arc::clone(&repository), Arc::clone(&is_over));
            tokio::spawn(async move {
                let mut answered = 0;
                while !is_over.load(Ordering::Relaxed) {
                    ask(&repository, None).await.unwrap();
                    answered += 1;
                    tokio::task::yield_now().await;
                }
                answered
            })
        })
        .collect();
    for round in 0..20 {
        // The same version again, then the next one beside it, then without the old one.
        load(&repository, answering(round), 1).await;
        load(&repository, answering(round), 2).await;
        repository.unload(&name("m"), Some(version(1))).unwrap();
        load(&repository, answering(round), 1).await;
        repository.unload(&name("m"), Some(version(2))).unwrap();
        assert_eq!(answer(&repository, None).await, round);
    }
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
    repository.wait_until(|index| index.len() == 1).await;
}

#[tokio::test]
async fn a_load_that_fails_leaves_what_serves_alone() {
    let repository = repository();
    repository.require(&name("m"));
    load(&repository, answering(1), 1).await;
    for number in [1, 2] {
        let error = repository.load(failing(number)).unwrap().wait().await.unwrap_err();
        assert_eq!(error.to_string(), "it is a picture");
        assert_eq!(answer(&repository, None).await, 1);
        assert_eq!(repository.readiness(), Ok(()));
    }
    assert_eq!(states(&repository), [(1, Step::Ready), (2, Step::Failed)]);
    let text = repository.metrics().encode();
    assert!(text.contains("torchmodel_model_ready{model=\"m\",version=\"1\"} 1\n"), "{text}");
    assert!(text.contains("torchmodel_model_ready{model=\"m\",version=\"2\"} 0\n"), "{text}");
    let error = ask(&repository, Some(2)).await.unwrap_err().to_string();
    assert_eq!(error, "model 'm' failed to load: NotTorchScript: it is a picture");
    load(&repository, answering(2), 2).await;
    assert_eq!(answer(&repository, None).await, 2, "what failed may be loaded again");
}

#[tokio::test]
async fn a_load_that_panics_has_failed() {
    let repository = repository();
    let request = LoadRequest { load: Box::new(|_| panic!("a bug")), ..failing(1) };
    let error = repository.load(request).unwrap().wait().await.unwrap_err();
    assert_eq!(error.to_string(), "loading panicked; the log says where");
    repository.unload(&name("m"), None).unwrap();
    assert_eq!(repository.index(), []);
}

#[tokio::test]
async fn what_is_in_flight_when_a_version_is_unloaded_is_answered_and_then_it_is_gone() {
    let repository = Arc::new(repository());
    let (gate, began) = (Arc::new(Gate::default()), Arc::new(tokio::sync::Notify::new()));
    let (held, starting) = (Arc::clone(&gate), Arc::clone(&began));
    let model = FakeModel::new("m").compute(move |_| {
        starting.notify_one();
        held.pass();
        Ok(Vec::new())
    });
    load(&repository, model, 1).await;
    let asking = Arc::clone(&repository);
    let in_flight = tokio::spawn(async move { ask(&asking, None).await });
    began.notified().await;
    repository.unload(&name("m"), None).unwrap();
    assert_eq!(states(&repository), [(1, Step::Unloading)]);
    let error = ask(&repository, None).await.unwrap_err();
    assert_eq!(error, InferError::NotReady("model 'm' is being unloaded".into()));
    gate.open();
    in_flight.await.unwrap().unwrap();
    repository.wait_until(<[_]>::is_empty).await;
    assert!(matches!(ask(&repository, None).await, Err(InferError::NotFound(_))));
    assert!(matches!(repository.unload(&name("m"), None), Err(InferError::NotFound(_))));
}

#[tokio::test]
async fn an_instance_that_does_not_come_back_holds_up_nobody() {
    let repository = repository();
    let gate = Arc::new(Gate::default());
    let held = Arc::clone(&gate);
    let model = FakeModel::new("m").compute(move |_| {
        held.pass();
        Ok(Vec::new())
    });
    load(&repository, model, 1).await;
    let now = std::time::Instant::now();
    let hasty = InferRequest { deadline: now.checked_add(std::time::Duration::from_millis(20)), ..request(None) };
    let version = repository.get(&name("m"), None).unwrap();
    assert!(matches!(version.infer(hasty).await, Err(InferError::DeadlineExceeded(_))));
    repository.unload(&name("m"), None).unwrap();
    // The last handle, on a thread of the async runtime, while the instance is stuck.
    drop(version);
    assert_eq!(states(&repository), [(1, Step::Unloading)]);
    load(&repository, answering(7), 1).await;
    assert_eq!(answer(&repository, None).await, 7, "the same version may be loaded meanwhile");
    gate.open();
}

/// Says when the last copy is gone.
#[derive(Clone)]
struct Lease(#[expect(dead_code, reason = "held only to be dropped")] Arc<AtExit>);

struct AtExit(mpsc::Sender<()>);

impl Drop for AtExit {
    fn drop(&mut self) {
        self.0.send(()).ok();
    }
}

#[tokio::test]
async fn a_version_that_is_gone_has_no_threads_no_lease_and_no_metrics() {
    let repository = repository();
    let (report, gone) = mpsc::channel();
    let (engine, artifact) = (Lease(Arc::new(AtExit(report.clone()))), Lease(Arc::new(AtExit(report))));
    let model = FakeModel::new("m").spec(|spec| spec.instances = Some(3)).compute(move |_| {
        let _kept_as_long_as_the_engine = &engine;
        Ok(Vec::new())
    });
    let request = model.into_request(version(1)).unwrap();
    let load = request.load;
    let load: Load = Box::new(move |context| Ok(LoadedVersion { lease: Box::new(artifact), ..load(context)? }));
    repository.load(LoadRequest { load, ..request }).unwrap().wait().await.unwrap();
    ask(&repository, None).await.unwrap();
    assert!(repository.metrics().encode().contains("nv_inference_count{model=\"m\",version=\"1\"} 1\n"));
    repository.unload(&name("m"), None).unwrap();
    repository.wait_until(<[_]>::is_empty).await;
    assert_eq!(gone.try_iter().count(), 2, "both were dropped before the version was gone");
    assert!(!repository.metrics().encode().contains("model=\"m\""));
}

#[tokio::test]
async fn a_load_that_nobody_wants_any_more_is_given_up() {
    let repository = repository();
    let (report, reported) = mpsc::channel();
    let load: Load = Box::new(move |context| {
        report.send(()).unwrap();
        while !context.is_canceled() {
            std::thread::yield_now();
        }
        Err(Failure::new(FailurePhase::Fetch, FailureReason::FetchTimeout, "given up"))
    });
    let pending = repository.load(LoadRequest { load, ..failing(1) }).unwrap();
    reported.recv().unwrap();
    assert!(matches!(repository.load(failing(1)), Err(LoadRefused::AlreadyLoading(loading)) if loading == key("m", 1)));
    repository.unload(&name("m"), None).unwrap();
    assert_eq!(pending.wait().await, Err(LoadError::Unloaded));
    repository.wait_until(<[_]>::is_empty).await;
}

#[tokio::test]
async fn a_load_that_ends_after_it_was_given_up_never_serves() {
    let repository = repository();
    let gate = Arc::new(Gate::default());
    let pending = repository.load(held(1, &gate)).unwrap();
    repository.wait_until(|index| index[0].state == VersionState::Loading(Progress::Loading)).await;
    repository.unload(&name("m"), None).unwrap();
    gate.open();
    assert_eq!(pending.wait().await, Err(LoadError::Unloaded));
    repository.wait_until(<[_]>::is_empty).await;
}

#[tokio::test]
async fn no_more_loads_run_at_a_time_than_are_allowed() {
    let repository =
        ModelRepository::new(RepositoryOptions { concurrent_loads: 2, ..RepositoryOptions::new(Metrics::new()) });
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let pending: Vec<_> = (1..=12)
        .map(|number| {
            let request = answering(0).into_request(version(number)).unwrap();
            let (load, running, most) = (request.load, Arc::clone(&running), Arc::clone(&most));
            let load: Load = Box::new(move |context| {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                load(context)
            });
            repository.load(LoadRequest { load, ..request }).unwrap()
        })
        .collect();
    for pending in pending {
        pending.wait().await.unwrap();
    }
    assert!((1..=2).contains(&most.load(Ordering::SeqCst)));
}

#[tokio::test]
async fn a_load_that_waits_for_its_turn_can_be_given_up() {
    let repository =
        ModelRepository::new(RepositoryOptions { concurrent_loads: 1, ..RepositoryOptions::new(Metrics::new()) });
    let gate = Arc::new(Gate::default());
    let first = repository.load(held(1, &gate)).unwrap();
    repository.wait_until(|index| index[0].state == VersionState::Loading(Progress::Loading)).await;
    let second = repository.load(answering(2).into_request(version(2)).unwrap()).unwrap();
    assert_eq!(repository.index()[1].state, VersionState::Loading(Progress::Waiting));
    repository.unload(&name("m"), Some(version(2))).unwrap();
    assert_eq!(second.wait().await, Err(LoadError::Unloaded));
    gate.open();
    first.wait().await.unwrap();
}

#[tokio::test]
async fn the_server_is_ready_while_every_model_that_was_asked_for_has_a_ready_version() {
    let repository = repository();
    assert_eq!(repository.readiness(), Err("no model is loaded yet".into()));
    repository.require(&name("m"));
    load(&repository, FakeModel::new("other"), 1).await;
    assert_eq!(repository.readiness(), Err("model 'm' is not loaded yet".into()));
    let gate = Arc::new(Gate::default());
    let pending = repository.load(held(1, &gate)).unwrap();
    assert_eq!(repository.readiness(), Err("model 'm' is loading; try again later".into()));
    gate.open();
    pending.wait().await.unwrap();
    assert_eq!(repository.readiness(), Ok(()));
    let gate = Arc::new(Gate::default());
    let swap = repository.load(held(1, &gate)).unwrap();
    assert_eq!((repository.readiness(), states(&repository)[0]), (Ok(()), (1, Step::Ready)), "a swap stays ready");
    gate.open();
    swap.wait().await.unwrap();
    repository.unload(&name("m"), None).unwrap();
    assert_eq!(repository.readiness(), Ok(()), "what was unloaded is not asked for any more");
}

#[tokio::test]
async fn a_version_whose_device_is_lost_has_failed_and_the_process_hears_of_it() {
    let (report, fatal) = mpsc::channel();
    let repository = ModelRepository::new(RepositoryOptions {
        on_fatal: Arc::new(move |failure| drop(report.send(failure))),
        ..RepositoryOptions::new(Metrics::new())
    });
    let model = FakeModel::new("m").compute(|_| Err(EngineError::DeviceLost("it fell off the bus".into())));
    load(&repository, model, 1).await;
    assert!(matches!(ask(&repository, None).await, Err(InferError::Internal(_))));
    assert_eq!(fatal.recv().unwrap().message, "the device is lost: it fell off the bus");
    repository.wait_until(|index| matches!(index[0].state, VersionState::Failed(_))).await;
    assert!(matches!(ask(&repository, None).await, Err(InferError::NotReady(_))));
    assert!(repository.metrics().encode().contains("torchmodel_model_ready{model=\"m\",version=\"1\"} 0\n"));
}

#[tokio::test]
async fn whoever_subscribes_hears_of_every_change() {
    let repository = repository();
    let mut changes = repository.subscribe();
    load(&repository, answering(1), 1).await;
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    repository.unload(&name("m"), None).unwrap();
    assert!(changes.has_changed().unwrap());
}
