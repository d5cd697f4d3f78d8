//! What only a GPU can show. Without one each test says so and passes; `tests/gpu/run.sh` runs them where there is one.

use std::process::Command;

use tch::{Device, Tensor};
use tempfile::TempDir;
use torch_shim::{
    Argument, Module, TorchErrorKind, define_module, is_device_lost, load_cuda, tensor_to_device, tensor_to_host,
};

use crate::refused::{REFUSED, fault};

const GPU: Device = Device::Cuda(0);
/// Tells the test that it is the process to be lost.
const DOOMED: &str = "TORCH_SHIM_TEST_DOOMED";

/// Whether there is a GPU; says so when not.
fn is_here() -> bool {
    let reason = match load_cuda(None) {
        Ok(()) if tch::Cuda::is_available() => return true,
        Ok(()) => "the driver shows no device".to_owned(),
        Err(error) => error,
    };
    println!("skipped: no GPU ({reason})");
    false
}

fn module(folder: &TempDir, source: &str) -> Module {
    let path = folder.path().join("model.pt");
    define_module(source, &[("w", 1.0)], &path).unwrap();
    Module::load(&path, GPU).unwrap()
}

fn indices(values: &[i64]) -> Argument {
    Argument::Tensor(tensor_to_device(&Tensor::from_slice(values), GPU).unwrap())
}

#[test]
fn refusals_on_a_gpu_are_known_by_their_kind() {
    if !is_here() {
        return;
    }
    let folder = TempDir::new().unwrap();
    for (kind, expression) in REFUSED {
        // An index may be checked by the kernel itself: see the test of the lost device.
        if matches!(kind, TorchErrorKind::Shape | TorchErrorKind::Datatype) {
            let (found, sentence) = fault(&folder, expression, "cuda:0");
            assert_eq!(found, *kind, "{expression}: {sentence}");
        }
    }
    assert!(!is_device_lost(GPU));
}

#[test]
fn running_out_of_device_memory_is_told_and_loses_nothing() {
    if !is_here() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let mut module = module(&folder, "def forward(self, n: int):\n  return torch.zeros([n], device='cuda:0')\n");
    let error = module.run("forward", &[Argument::Int(1 << 45)]).unwrap_err();
    assert_eq!(error.kind, TorchErrorKind::OutOfMemory, "{error}");
    assert!(!is_device_lost(GPU));
    assert!(module.run("forward", &[Argument::Int(4)]).is_ok());
}

#[test]
fn a_fingerprint_sees_memory_on_the_device() {
    if !is_here() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let source = "def forward(self, x):\n  return x * self.w\ndef write(self, x):\n  self.w.add_(1)\n  return x\n";
    let mut module = module(&folder, source);
    let before = module.fingerprint().unwrap();
    let on_cpu = Module::load(&folder.path().join("model.pt"), Device::Cpu).unwrap();
    assert_eq!(on_cpu.fingerprint().unwrap(), before, "it is the same wherever the memory is");
    module.run("forward", &[indices(&[1])]).unwrap();
    assert_eq!(module.fingerprint().unwrap(), before);
    module.run("write", &[indices(&[1])]).unwrap();
    assert_ne!(module.fingerprint().unwrap(), before);
}

/// Fails inside a kernel: in a process of its own, since no other test can use the device afterwards.
#[test]
fn a_device_side_assert_is_a_lost_device_in_the_call_and_in_the_copy_out() {
    if std::env::var_os(DOOMED).is_some() {
        return lose_the_device();
    }
    if !is_here() {
        return;
    }
    let name = "gpu::a_device_side_assert_is_a_lost_device_in_the_call_and_in_the_copy_out";
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args([name, "--exact", "--nocapture"]).env(DOOMED, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("lost as it should be"), "{text}");
}

fn lose_the_device() {
    load_cuda(None).unwrap();
    let folder = TempDir::new().unwrap();
    let mut module =
        module(&folder, "def forward(self, i):\n  return torch.embedding(torch.ones([2, 2], device='cuda:0'), i)\n");
    assert!(module.run("forward", &[indices(&[0, 1])]).is_ok());
    assert!(!is_device_lost(GPU));
    let later = indices(&[0, 1]);
    let returned = module.run("forward", &[indices(&[0, 7])]);
    let copied = returned.and_then(|outputs| match &outputs[0].value {
        torch_shim::OutputValue::Tensor(tensor) => tensor_to_host(tensor, false),
        torch_shim::OutputValue::Strings(_) => unreachable!("an embedding is a tensor"),
    });
    let error = copied.unwrap_err();
    assert_eq!(error.kind, TorchErrorKind::Device, "{error}");
    assert!(error.sentence().starts_with("CUDA error: device-side assert"), "{}", error.sentence());
    assert!(is_device_lost(GPU) && is_device_lost(GPU), "it stays lost");
    let again = module.run("forward", &[later]);
    assert_eq!(again.unwrap_err().kind, TorchErrorKind::Device, "inside the interpreter too");
    println!("lost as it should be");
    // The destructors of CUDA's libraries may hang or abort now.
    torch_shim::exit_now(0);
}
