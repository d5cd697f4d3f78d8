//! What a module keeps from one call to the next, seen from outside: fingerprints, constants put back, handles that share weights,
//! and what a model prints.

use std::{fs::File, path::PathBuf, sync::Mutex};

use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use torch_shim::{
    Argument, Module, OutputValue, TorchErrorKind, define_classes, define_module, set_print_handler, tensor_to_host,
};

/// Each method but `read` leaves a trace.
const KEEPER: &str = "
class Sub(Module):
  __parameters__ = []
  __buffers__ = []
  hidden : List[Tensor]
  training : bool
class Model(Module):
  __parameters__ = []
  __buffers__ = [\"w\", ]
  w : Tensor
  d : Dict[str, Tuple[Tensor, int]]
  n : int
  name : str
  sub : __torch__.Sub
  training : bool
  def read(self: __torch__.Model, x: Tensor) -> Tensor:
    return torch.add(torch.add(x, self.w), CONSTANTS.c0)
  def buffer(self: __torch__.Model, x: Tensor) -> Tensor:
    return torch.add_(self.w, x)
  def inside(self: __torch__.Model, x: Tensor) -> Tensor:
    return torch.add_(self.d[\"k\"][0], x)
  def below(self: __torch__.Model, x: Tensor) -> Tensor:
    return torch.add_(self.sub.hidden[0], x)
  def number(self: __torch__.Model, x: Tensor) -> Tensor:
    self.n = self.n + 1
    return x
  def text(self: __torch__.Model, x: Tensor) -> Tensor:
    self.name = self.name + \"a\"
    return x
  def constant(self: __torch__.Model, x: Tensor) -> Tensor:
    return torch.add_(CONSTANTS.c0, x)
  def longer(self: __torch__.Model, x: Tensor) -> Tensor:
    self.sub.hidden.append(x)
    return x
  def grow(self: __torch__.Model, x: Tensor) -> Tensor:
    self.w = torch.arange(3000001, dtype=0)
    return x
  def turn(self: __torch__.Model, x: Tensor) -> Tensor:
    self.w.copy_(torch.roll(self.w, 1))
    return x
  def last(self: __torch__.Model, x: Tensor) -> Tensor:
    self.w[-1] = self.w[-1] + 1
    return x
";

fn keeper(folder: &TempDir) -> Module {
    let path = folder.path().join("model.pt");
    define_classes(KEEPER, &path).unwrap();
    Module::load(&path, Device::Cpu).unwrap()
}

fn one() -> Argument {
    Argument::Tensor(Tensor::ones([1], (Kind::Float, Device::Cpu)))
}

fn value(module: &mut Module, method: &str) -> f64 {
    let OutputValue::Tensor(tensor) = &module.run(method, &[one()]).unwrap()[0].value else { panic!("not a tensor") };
    tensor.double_value(&[0])
}

#[test]
fn a_fingerprint_changes_with_whatever_a_call_leaves_behind_and_with_nothing_else() {
    let folder = TempDir::new().unwrap();
    let mut module = keeper(&folder);
    let fresh = module.fingerprint().unwrap();
    module.run("read", &[one()]).unwrap();
    assert_eq!(module.fingerprint().unwrap(), fresh);
    assert_eq!(keeper(&folder).fingerprint().unwrap(), fresh, "no address goes in");
    let mut before = fresh;
    for method in ["buffer", "inside", "below", "number", "text", "constant", "longer", "grow", "turn", "last"] {
        module.run(method, &[one()]).unwrap();
        let after = module.fingerprint().unwrap();
        assert_ne!(after, before, "{method}");
        before = after;
    }
}

#[test]
fn a_frozen_modules_weights_are_in_its_fingerprint() {
    let folder = TempDir::new().unwrap();
    let fingerprint = |weight| {
        let path = folder.path().join("model.pt");
        define_module("def forward(self, x):\n  return x * self.w\n", &[("w", weight)], &path).unwrap();
        Module::load(&path, Device::Cpu).unwrap().freeze("forward").unwrap().fingerprint().unwrap()
    };
    assert_ne!(fingerprint(1.0), fingerprint(2.0));
    assert_eq!(fingerprint(2.0), fingerprint(2.0));
}

#[test]
fn a_copy_shares_the_constants_of_the_code_which_can_be_put_back() {
    let folder = TempDir::new().unwrap();
    let mut module = keeper(&folder);
    let kept = module.keep_constants().unwrap();
    let mut copy = module.deep_copy().unwrap();
    assert!((value(&mut copy, "constant") - 2.0).abs() < f64::EPSILON);
    assert!((value(&mut module, "read") - 4.0).abs() < f64::EPSILON, "the constant is one for both");
    kept.restore().unwrap();
    assert!((value(&mut module, "read") - 3.0).abs() < f64::EPSILON);
    assert_eq!(module.fingerprint().unwrap(), keeper(&folder).fingerprint().unwrap());
}

#[test]
fn a_method_without_state_is_shared_whatever_other_methods_do() {
    let folder = TempDir::new().unwrap();
    let mut module = keeper(&folder);
    let mut shared = module.share("read").unwrap();
    let threads = [module, shared.share("read").unwrap(), shared].map(|mut module| {
        std::thread::spawn(move || (0..100).all(|_| (value(&mut module, "read") - 3.0).abs() < f64::EPSILON))
    });
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
}

#[test]
fn what_is_shared_runs_no_method_that_writes() {
    let folder = TempDir::new().unwrap();
    let mut module = keeper(&folder);
    for method in ["buffer", "inside", "constant", "no_such_method"] {
        let refused = module.share(method).unwrap_err();
        assert_eq!(refused.kind, TorchErrorKind::Argument, "{method}: {refused}");
    }
    let mut shared = module.share("read").unwrap();
    for module in [&mut module, &mut shared] {
        let refused = module.run("buffer", &[one()]).unwrap_err();
        assert!(refused.to_string().contains("shared for 'read'"), "{refused}");
    }
    let mut copy = module.deep_copy().unwrap();
    assert!((value(&mut copy, "buffer") - 2.0).abs() < f64::EPSILON, "a copy has weights of its own");
}

fn saved(folder: &TempDir, weight: f32) -> PathBuf {
    let path = folder.path().join(format!("{weight}.pt"));
    define_module("def forward(self, x):\n  return x * self.w\n", &[("w", weight)], &path).unwrap();
    path
}

#[test]
fn an_open_file_is_loaded_even_when_its_path_has_become_another() {
    let folder = TempDir::new().unwrap();
    let path = saved(&folder, 2.0);
    let file = File::open(&path).unwrap();
    std::fs::rename(saved(&folder, 3.0), &path).unwrap();
    for _ in 0..2 {
        let mut module = Module::load_from(&file, Device::Cpu).unwrap();
        assert!((value(&mut module, "forward") - 2.0).abs() < f64::EPSILON);
    }
    let missing = Module::load(&folder.path().join("missing.pt"), Device::Cpu).unwrap_err();
    assert_eq!(missing.kind, TorchErrorKind::Archive, "{missing}");
    let folder_itself = Module::load(folder.path(), Device::Cpu).unwrap_err();
    assert_eq!(folder_itself.kind, TorchErrorKind::Archive, "{folder_itself}");
}

static PRINTED: Mutex<String> = Mutex::new(String::new());

#[test]
fn what_a_model_prints_is_given_to_the_handler() {
    set_print_handler(|text| {
        PRINTED.lock().unwrap().push_str(text);
        assert!(!text.contains("stop"), "a handler that panics harms nobody");
    });
    set_print_handler(|_| panic!("the first handler stays"));
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.pt");
    define_module("def forward(self, x, s: str):\n  print('got', s)\n  return x\n", &[], &path).unwrap();
    let mut module = Module::load(&path, Device::Cpu).unwrap();
    for text in ["one", "two\nlines", "stop"] {
        module.run("forward", &[one(), Argument::Str(text.into())]).unwrap();
    }
    assert_eq!(*PRINTED.lock().unwrap(), "got one\ngot two\nlines\ngot stop\n");
}

#[test]
fn a_tensor_without_a_host_form_is_an_error() {
    let meta = Tensor::ones([2], (Kind::Float, Device::Cpu)).to_sparse_sparse_dim(1);
    assert_eq!(tensor_to_host(&meta, false).unwrap().as_ref().len(), 8, "a sparse tensor becomes a dense one");
    assert!(tensor_to_host(&Tensor::new(), false).is_err(), "an undefined one has no values");
}
