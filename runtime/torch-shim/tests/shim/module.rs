//! Models made from source here, loaded, described and run through the shim.

use std::path::PathBuf;

use bytes::Bytes;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use torch_shim::{
    Argument, Module, OutputValue, ScalarType, TensorBuffer, TorchErrorKind, Type, define_module, tensor_from_bytes,
    tensor_to_host,
};

fn save(folder: &TempDir, source: &str, buffers: &[(&str, f32)]) -> PathBuf {
    let path = folder.path().join("model.pt");
    define_module(source, buffers, &path).unwrap();
    path
}

fn load(source: &str, buffers: &[(&str, f32)]) -> Module {
    let folder = TempDir::new().unwrap();
    Module::load(&save(&folder, source, buffers), Device::Cpu).unwrap()
}

fn ones() -> Argument {
    Argument::Tensor(Tensor::ones([2], (Kind::Float, Device::Cpu)))
}

fn floats(value: &OutputValue) -> Vec<f32> {
    let OutputValue::Tensor(tensor) = value else { panic!("not a tensor: {value:?}") };
    let host = tensor_to_host(tensor, false).unwrap();
    host.as_ref().chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn describes_arguments_defaults_and_returns() {
    let facts = load(
        "def forward(self, x: Tensor, n: int, mode: str = 'a', y: Optional[Tensor] = None) -> Tuple[Tensor, int]:\n  return (x, n)\n",
        &[("w", 1.0)],
    )
    .describe()
    .unwrap();
    let method = facts.method("forward").unwrap();
    let names: Vec<_> =
        method.arguments.iter().map(|argument| (argument.name.as_str(), argument.has_default)).collect();
    assert_eq!(names, [("x", false), ("n", false), ("mode", true), ("y", true)]);
    assert_eq!(method.arguments[3].argument_type, Type::Optional { item: Box::new(Type::Tensor) });
    assert_eq!(method.returns, Type::Tuple { items: vec![Type::Tensor, Type::Int], names: vec![] });
    assert_eq!((facts.buffers.count, facts.buffers.size_bytes), (1, 4));
}

#[test]
fn knows_what_a_method_writes_to() {
    for (source, is_stateful, mutates_inputs) in [
        ("def forward(self, x):\n  return x + self.w\n", false, false),
        ("def forward(self, x):\n  self.w = self.w + x\n  return self.w\n", true, false),
        ("def forward(self, x):\n  self.w.add_(1)\n  return x\n", true, false),
        ("def forward(self, x):\n  self.w[0] = 5.0\n  return x\n", true, false),
        ("def forward(self, x):\n  if bool(x.sum() > 0):\n    self.w.mul_(2)\n  return x\n", true, false),
        ("def forward(self, x):\n  x.add_(self.w)\n  return x\n", false, true),
        ("def forward(self, x):\n  y = x.clone()\n  y.add_(1)\n  return y\n", false, false),
    ] {
        let facts = load(source, &[("w", 1.0)]).describe().unwrap();
        let method = facts.method("forward").unwrap();
        assert_eq!((method.is_stateful, method.mutates_inputs), (is_stateful, mutates_inputs), "{source}");
    }
}

#[test]
fn flattens_what_a_method_returns_and_names_the_leaves() {
    let mut module = load(
        "def forward(self, x: Tensor, s: List[str]) -> Tuple[Tensor, Dict[str, Tensor], List[str], int, float, bool]:\n  return (x, {'a': x + 1, 'b': x + 2}, s, 7, 0.5, True)\n",
        &[],
    );
    let strings = vec![b"nul\0inside".to_vec(), vec![0xff, 0xfe], vec![]];
    let outputs = module.run("forward", &[ones(), Argument::StrList(strings.clone())]).unwrap();
    let paths: Vec<_> = outputs.iter().map(|output| output.path.as_str()).collect();
    assert_eq!(paths, ["0", "1.a", "1.b", "2", "3", "4", "5"]);
    assert_eq!(floats(&outputs[2].value), [3.0, 3.0]);
    assert!(matches!(&outputs[3].value, OutputValue::Strings(texts) if *texts == strings));
}

#[test]
fn every_kind_of_scalar_reaches_the_method() {
    let mut module = load(
        "def forward(self, i: int, f: float, b: bool, s: str, li: List[int], lf: List[float], d: int = 3) -> Tuple[int, float, bool, str]:\n  return (i + len(li) + d, f + lf[0], not b, s + '!')\n",
        &[],
    );
    let arguments = [
        Argument::Int(40),
        Argument::Double(0.25),
        Argument::Bool(true),
        Argument::Str(b"a\0b".to_vec()),
        Argument::IntList(vec![1, 2]),
        Argument::DoubleList(vec![0.5]),
        Argument::Default,
    ];
    let outputs = module.run("forward", &arguments).unwrap();
    let OutputValue::Tensor(count) = &outputs[0].value else { panic!() };
    assert_eq!(count.int64_value(&[0]), 45);
    let OutputValue::Tensor(number) = &outputs[1].value else { panic!() };
    assert!((number.double_value(&[0]) - 0.75).abs() < f64::EPSILON);
    assert!(matches!(&outputs[3].value, OutputValue::Strings(texts) if texts[0] == b"a\0b!"));
}

#[test]
fn a_copy_has_a_state_of_its_own() {
    let mut module = load("def forward(self, x):\n  self.w.add_(1)\n  return self.w.clone()\n", &[("w", 0.0)]);
    let mut copy = module.deep_copy().unwrap();
    assert_eq!(floats(&copy.run("forward", &[ones()]).unwrap()[0].value), [1.0]);
    assert_eq!(floats(&copy.run("forward", &[ones()]).unwrap()[0].value), [2.0]);
    assert_eq!(floats(&module.run("forward", &[ones()]).unwrap()[0].value), [1.0]);
}

#[test]
fn a_frozen_module_answers_the_same() {
    let module = load("def forward(self, x):\n  return x * self.w\ndef other(self, x):\n  return x\n", &[("w", 3.0)]);
    let mut frozen = module.freeze("forward").unwrap();
    assert_eq!(floats(&frozen.run("forward", &[ones()]).unwrap()[0].value), [3.0, 3.0]);
}

#[test]
fn faults_have_a_kind_and_no_backtrace() {
    let mut module = load(
        "def forward(self, x: Tensor, n: int) -> Tensor:\n  assert n >= 0, 'n must not be negative'\n  return torch.mm(x, x)\n",
        &[],
    );
    let raised = module.run("forward", &[ones(), Argument::Int(-1)]).unwrap_err();
    assert_eq!(raised.kind, TorchErrorKind::Raised);
    assert!(raised.message.contains("n must not be negative"), "{raised}");
    let shape = module.run("forward", &[ones(), Argument::Int(1)]).unwrap_err();
    assert_eq!(shape.kind, TorchErrorKind::Shape);
    assert!(!shape.message.contains("Exception raised from"), "{shape}");
    assert_eq!(shape.sentence(), "self must be a matrix");
    let argument = module.run("forward", &[ones()]).unwrap_err();
    assert_eq!(argument.kind, TorchErrorKind::Argument, "{argument}");
    let wrong_type = module.run("forward", &[Argument::Int(1), Argument::Int(1)]).unwrap_err();
    assert_eq!(wrong_type.kind, TorchErrorKind::Argument, "{wrong_type}");
    let unknown = module.run("backward", &[ones()]).unwrap_err();
    assert_eq!(unknown.kind, TorchErrorKind::Argument, "{unknown}");
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// In a process of its own, whose memory no other test moves.
#[test]
fn a_call_that_fails_keeps_nothing_of_its_arguments() {
    const ALONE: &str = "TORCH_SHIM_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "module::a_call_that_fails_keeps_nothing_of_its_arguments";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args([name, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let mut module = load(
        "def forward(self, x, s: str, n: int):\n  assert n != 0, 'no ' + s\n  if n == 1:\n    return torch.mm(x, x)\n  return x[n]\n",
        &[],
    );
    let mut fail = |number: Argument| {
        let x = Argument::Tensor(Tensor::ones([1 << 18], (Kind::Float, Device::Cpu)));
        module.run("forward", &[x, Argument::Str(vec![b'a'; 1 << 20]), number]).unwrap_err().kind
    };
    let mut fail_in_every_way =
        || [Argument::Int(0), Argument::Int(1), Argument::Int(1 << 30), Argument::Double(0.5)].map(&mut fail);
    let kinds = [TorchErrorKind::Raised, TorchErrorKind::Shape, TorchErrorKind::Index, TorchErrorKind::Argument];
    assert_eq!(fail_in_every_way(), kinds);
    let before = resident_bytes();
    for _ in 0..200 {
        assert_eq!(fail_in_every_way(), kinds);
    }
    // One of the megabytes of one of the four calls would be 200 MB.
    assert!(resident_bytes() < before + (50 << 20), "{before} bytes grew to {}", resident_bytes());
}

#[test]
fn a_file_that_is_no_archive_is_told_apart_from_one_with_a_foreign_operator() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("garbage.pt");
    std::fs::write(&path, b"this is not a zip archive").unwrap();
    assert_eq!(Module::load(&path, Device::Cpu).unwrap_err().kind, TorchErrorKind::Archive);
    let path = save(&folder, "def forward(self, x):\n  return torch.relu(x)\n", &[]);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(Module::load(&path, Device::Cpu).unwrap_err().kind, TorchErrorKind::Archive);
}

#[test]
fn bytes_become_a_tensor_and_a_tensor_bytes_without_a_copy() {
    let buffer: Vec<f32> = vec![1.0, 2.0, 3.0, 4.0];
    let raw: Vec<u8> = buffer.iter().flat_map(|value| value.to_le_bytes()).collect();
    let data = Bytes::from(raw.clone());
    let address = data.as_ptr();
    let tensor = tensor_from_bytes(data, &[2, 2], ScalarType(6), 4).unwrap();
    assert!((tensor.double_value(&[1, 0]) - 3.0).abs() < f64::EPSILON);
    let host = tensor_to_host(&tensor, false).unwrap();
    drop(tensor);
    assert_eq!(host.as_ref().as_ptr(), address);
    assert_eq!((host.as_ref(), host.shape(), host.scalar_type()), (&raw[..], &[2, 2][..], ScalarType(6)));
    assert_ne!(
        Bytes::from_owner(tensor_to_host(&Tensor::ones([2], (Kind::Float, Device::Cpu)), true).unwrap()).len(),
        0
    );
}

#[test]
fn data_that_does_not_fit_is_refused() {
    let refused = tensor_from_bytes(Bytes::from_static(&[0; 7]), &[2], ScalarType(6), 4).unwrap_err();
    assert_eq!(refused.kind, TorchErrorKind::Argument);
    let mut buffer = TensorBuffer::new(&[2], ScalarType(6)).unwrap();
    buffer.push(&[0; 4]).unwrap();
    assert!(buffer.push(&[0; 8]).is_err());
    assert!(buffer.finish().is_err());
}
