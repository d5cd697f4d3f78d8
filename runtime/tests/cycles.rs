//! Memory over many lives of a version: what the repository keeps of each, compared with what libtorch itself keeps.
//!
//! Two processes load, ask and unload the same model again and again, and try to load a file that is none: one through
//! [`ModelRepository`], one with nothing but libtorch. Each tells its resident memory after the 100th cycle, when what is made once has
//! been made, and at the end. `TORCHMODEL_CYCLES` sets how many there are; `make test-cycles` runs 1,000.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use torch_shim::{Argument, Module};
use torchmodel_core::{
    config::ModelConfig,
    inference::{InferRequest, NamedTensor, Parameters},
    loader::{Loader as _, ModelFiles},
    metrics::Metrics,
    model_key::ModelVersion,
    repository::{LoadContext, LoadRequest, LoadedVersion, ModelRepository, RepositoryOptions},
    tensor,
};
use torchmodel_torch::TorchLoader;

/// Which of the two processes this is.
const ROLE: &str = "TORCHMODEL_CYCLES_ROLE";
/// Where the files of the children are.
const FOLDER: &str = "TORCHMODEL_CYCLES_FOLDER";
/// How many cycles.
const COUNT: &str = "TORCHMODEL_CYCLES";
/// Where nobody says how many: a hundred that are measured show what each leaves, if it is more than 13 KiB.
const DEFAULT_COUNT: usize = 200;
/// The cycle after which memory may not grow.
const EARLY: usize = 100;
/// A side of the model's square weight: 3 MB.
const SIDE: i64 = 886;
/// What may be added to libtorch's own growth: one part in so many of what was resident early.
const TOLERANCE: i64 = 100;
/// Inferences of each life without a repository: a warm-up's, and the one that is asked for.
const RUNS: usize = 4;

/// Resident memory in KiB.
#[derive(Clone, Copy, Debug)]
struct Resident {
    early: i64,
    late: i64,
}

impl Resident {
    fn growth(self) -> i64 {
        self.late - self.early
    }
}

#[test]
fn what_is_kept_of_each_life_is_what_libtorch_keeps() {
    let folder = TempDir::new().unwrap();
    write_model(&folder.path().join("model.pt"));
    fs::write(folder.path().join("broken.pt"), "PK\x03\x04 this is no archive").unwrap();
    let [bare, ours] = ["bare", "ours"].map(|role| run_child(role, folder.path()));
    println!("resident after {EARLY} and after {} cycles: bare {bare:?}, ours {ours:?} (KiB)", count());
    let allowed = bare.growth() + ours.early / TOLERANCE;
    assert!(ours.growth() <= allowed, "grew by {} KiB, allowed are {allowed}", ours.growth());
}

/// The other processes, of which each is this test alone.
#[test]
fn a_process_of_cycles() {
    let (Ok(role), Some(folder)) = (std::env::var(ROLE), std::env::var_os(FOLDER).map(PathBuf::from)) else { return };
    let resident = match role.as_str() {
        "ours" => measure(ours(&folder)),
        _ => measure(bare(&folder)),
    };
    println!("\nresident {} {}", resident.early, resident.late);
}

fn count() -> usize {
    std::env::var(COUNT).ok().map_or(DEFAULT_COUNT, |count| count.parse().unwrap())
}

fn write_model(path: &Path) {
    let weight = Tensor::rand([SIDE, SIDE], (Kind::Float, Device::Cpu));
    let example = Tensor::zeros([1, SIDE], (Kind::Float, Device::Cpu));
    let mut forward = |inputs: &[Tensor]| vec![inputs[0].matmul(&weight)];
    let module = tch::CModule::create_by_tracing("Model", "forward", &[example], &mut forward).unwrap();
    module.save(path).unwrap();
    assert!(fs::metadata(path).unwrap().len() > 3_000_000);
}

fn run_child(role: &str, folder: &Path) -> Resident {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_process_of_cycles", "--nocapture"]).env(ROLE, role).env(FOLDER, folder);
    // With more arenas, chance decides which of them each thread takes, and how much stays in it.
    command.env("MALLOC_ARENA_MAX", "2");
    // Else glibc raises this to the size of what was freed, and then keeps up to twice as much at the end of an arena: resident memory
    // is one model more or less from one cycle to the next, for good, by chance.
    let output = command.env("MALLOC_MMAP_THRESHOLD_", "1048576").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("resident "));
    let line = line.unwrap_or_else(|| panic!("{role}: {text} {}", String::from_utf8_lossy(&output.stderr)));
    let (early, late) = line.split_once(' ').unwrap();
    Resident { early: early.parse().unwrap(), late: late.parse().unwrap() }
}

fn measure(mut cycle: impl FnMut()) -> Resident {
    let count = count();
    assert!(count > EARLY, "{COUNT} must be more than {EARLY}");
    let mut early = 0;
    for number in 1..=count {
        cycle();
        if number == EARLY {
            early = resident_kib();
        }
    }
    Resident { early, late: resident_kib() }
}

fn resident_kib() -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// One life with nothing but libtorch.
fn bare(folder: &Path) -> impl FnMut() {
    let (model, broken) = (folder.join("model.pt"), folder.join("broken.pt"));
    move || {
        let mut module = Module::load(&model, Device::Cpu).unwrap();
        for _ in 0..RUNS {
            let input = Argument::Tensor(Tensor::ones([1, SIDE], (Kind::Float, Device::Cpu)));
            assert_eq!(module.run("forward", &[input]).unwrap().len(), 1);
        }
        assert!(Module::load(&broken, Device::Cpu).is_err());
    }
}

/// One life through the repository.
fn ours(folder: &Path) -> impl FnMut() {
    let repository = ModelRepository::new(RepositoryOptions::new(Metrics::new()));
    let spec = format!("{{inputs: [{{name: {}, datatype: FP32, shape: [1, {SIDE}]}}]}}", first_input(folder));
    let config = ModelConfig::check(&serde_yaml::from_str(&spec).unwrap(), Some("m".into())).unwrap();
    let input = NamedTensor {
        name: first_input(folder),
        tensor: tensor::Tensor::new(
            tensor::DataType::Fp32,
            vec![1, SIDE],
            (0..SIDE).flat_map(|_| 1f32.to_le_bytes()).collect::<Vec<_>>().into(),
        )
        .unwrap(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (model, broken) = (folder.join("model.pt"), folder.join("broken.pt"));
    move || {
        let name = config.name.clone();
        runtime.block_on(async {
            repository.load(request(&model, &config)).unwrap().wait().await.unwrap();
            let request_of = InferRequest {
                model: name.clone(),
                version: None,
                id: String::new(),
                inputs: vec![input.clone()],
                outputs: Vec::new(),
                parameters: Parameters::new(),
                deadline: None,
            };
            let answer = repository.get(&name, None).unwrap().infer(request_of).await.unwrap();
            assert_eq!(answer.outputs.len(), 1);
            drop(answer);
            repository.unload(&name, None).unwrap();
            repository.wait_until(<[_]>::is_empty).await;
            repository.load(request(&broken, &config)).unwrap().wait().await.unwrap_err();
            repository.unload(&name, None).unwrap();
        });
    }
}

fn first_input(folder: &Path) -> String {
    let facts = Module::load(&folder.join("model.pt"), Device::Cpu).unwrap().describe().unwrap();
    facts.method("forward").unwrap().arguments[0].name.clone()
}

fn request(path: &Path, config: &ModelConfig) -> LoadRequest {
    let (path, loaded_as) = (path.to_owned(), config.clone());
    let load = Box::new(move |_: &LoadContext| {
        let files = ModelFiles { archive: Arc::new(fs::File::open(&path).unwrap()), path };
        let model = TorchLoader::new(vec![Device::Cpu]).load(&files, &loaded_as)?;
        Ok(LoadedVersion { model, artifact_size_bytes: 0, lease: Box::new(()) })
    });
    LoadRequest { version: ModelVersion::FIRST, config: config.clone(), load }
}
