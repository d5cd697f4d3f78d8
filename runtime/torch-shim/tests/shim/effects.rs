//! What a method's code writes to, told without running it: both directions, since a state that is missed mixes up clients and one
//! that is imagined costs batching and instances.

use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use torch_shim::{Argument, Method, Module, define_classes};

/// A module with a bit of everything, around a `forward` of the test's.
pub fn class(body: &str) -> String {
    let end = if body.contains("return ") { "" } else { "return x" };
    let body = body.lines().chain([end]).map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n");
    format!(
        "class Scaler(ModuleInterface):
  def forward(self: __torch__.Scaler, x: Tensor) -> Tensor:
    pass
class ScalerImpl(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  def forward(self: __torch__.ScalerImpl, x: Tensor) -> Tensor:
    return torch.mul(x, 2)
class Sub(Module):
  __parameters__ = []
  __buffers__ = [\"w\", ]
  w : Tensor
  training : bool
  def forward(self: __torch__.Sub, x: Tensor) -> Tensor:
    return torch.add(x, self.w)
  def bump(self: __torch__.Sub, x: Tensor) -> Tensor:
    w = self.w
    return w.add_(x)
class Box:
  t : Tensor
  def __init__(self: __torch__.Box, t: Tensor) -> None:
    self.t = t
class Model(Module):
  __parameters__ = [\"p\", ]
  __buffers__ = [\"w\", ]
  p : Tensor
  w : Tensor
  cache : List[Tensor]
  nested : List[List[Tensor]]
  d : Dict[str, Tensor]
  t : Tuple[Tensor, Tensor]
  maybe : Optional[Tensor]
  n : int
  flag : bool
  sizes : List[int]
  scaler : __torch__.Scaler
  sub : __torch__.Sub
  training : bool
  def forward(self: __torch__.Model, x: Tensor) -> Tensor:
{body}
"
    )
}

fn load(folder: &TempDir, body: &str) -> Module {
    let path = folder.path().join("model.pt");
    define_classes(&class(body), &path).unwrap_or_else(|error| panic!("{body}\n{error}"));
    Module::load(&path, Device::Cpu).unwrap()
}

/// What is told of it.
pub fn forward(folder: &TempDir, body: &str) -> Method {
    load(folder, body).describe().unwrap().method("forward").unwrap().clone()
}

/// Whether a call leaves something behind.
fn leaves_a_trace(folder: &TempDir, body: &str) -> bool {
    let mut module = load(folder, body);
    let before = module.fingerprint().unwrap();
    let x = Argument::Tensor(Tensor::full([1], 3.0, (Kind::Float, Device::Cpu)));
    module.run("forward", &[x]).unwrap_or_else(|error| panic!("{body}\n{error}"));
    module.fingerprint().unwrap() != before
}

const WRITES_TO_THE_MODULE: &[&str] = &[
    "self.w.add_(x)",
    "self.w = torch.add(self.w, x)",
    "self.n += 1",
    "self.cache[0].add_(x)",
    "self.cache[0] = x",
    "self.cache.append(x)",
    "self.cache.clear()",
    "y = self.cache.pop()",
    "self.cache += [x]",
    "self.nested[0][0].add_(x)",
    "self.nested[0].append(x)",
    "self.d['k'] += x",
    "self.d['k'].mul_(2)",
    "self.d['y'] = x",
    "y = self.d.pop('k')",
    "self.t[0].add_(x)",
    "a, b = self.t\nb.add_(x)",
    "self.sizes.append(1)",
    "self.sizes[0] = 3",
    "y = self.maybe\nif y is not None:\n  y.add_(x)",
    "for c in self.cache:\n  c.add_(1)",
    "for k, v in self.d.items():\n  v.zero_()",
    "for v in self.d.values():\n  v.zero_()",
    "self.w.view([-1]).add_(1)",
    "self.w[0] = 5.0",
    "y = self.w.detach()[0:1]\ny.fill_(2)",
    "torch.chunk(self.w, 1)[0].add_(1)",
    "self.w.unbind()[0].add_(1)",
    "y: List[Tensor] = []\ny.append(self.w)\ny[0].add_(x)",
    "y = self.w if bool(x.sum() > 0) else x\ny.add_(1)",
    "y = x + 1\nfor i in range(3):\n  y.add_(1)\n  y = self.w",
    "y = torch.dropout(self.w, 0.5, False)\ny.add_(1)\nreturn y",
    "y = torch.einsum('i->i', [self.w])\ny.add_(1)\nreturn y",
    "torch.neg_(self.w)",
    "torch.add(x, x, out=self.w)",
    "y = [self.w]\ntorch._foreach_add_(y, 1.0)\nreturn y[0]",
    "torch.embedding_renorm_(self.p.view([1, 1]), torch.zeros([1], dtype=4), 0.5, 2.0)",
    "y = x + 1\ny.set_(self.w)\ny.add_(1)\nreturn y",
    "y = __torch__.Box(self.w)\ny.t.add_(x)",
    "y = (self.sub).bump(x)",
    "self.sub.w.add_(x)",
    "self.sub.w = x",
    "y = fork((self.sub).bump, x)\nreturn y.wait()",
    "y = torch.batch_norm(x.view([1, 1]), None, None, self.w, self.w, True, 0.1, 0.00001, False)",
    "y = torch.instance_norm(x.view([1, 1, 1]), None, None, self.w, self.w, True, 0.1, 0.00001, False)",
    "a, b, c = torch.native_batch_norm(x.view([1, 1]), None, None, self.w, self.w, True, 0.1, 0.00001)\nreturn a",
    "a, b, c = torch._native_batch_norm_legit(x.view([1, 1]), None, None, self.w, self.w, True, 0.1, 0.00001)\nreturn a",
    "if not self.training:\n  self.n += 1",
    "if not self.flag:\n  self.n += 1",
    "self.flag = True\nif self.flag:\n  self.w.add_(x)",
];

/// What is told for the sake of caution: code that is not known before it runs, and what shares a list with the module's own.
const MAY_WRITE_TO_THE_MODULE: &[&str] =
    &["y = (self.scaler).forward(x)", "if bool(x.sum() < 0):\n  self.n += 1", "y = [self.w, x]\ny[1].add_(1)"];

const WRITES_TO_A_CONSTANT: &[&str] = &[
    "return CONSTANTS.c0.add_(x)",
    "y = CONSTANTS.c0.view([-1])\ny.add_(x)\nreturn y",
    "y = [CONSTANTS.c0]\ny[0].add_(x)\nreturn y[0]",
];

const KEEPS_NOTHING: &[&str] = &[
    "y = x + self.w",
    "y = x.clone()\ny.add_(self.w)",
    "y = torch.linear(x, self.p.view([1, 1]), self.w)\ny.relu_()",
    "y = torch.zeros([1])\ny.copy_(self.w)\ny.add_(1)",
    "y = [self.w]\ny.append(x)\ny += [x]\ny += [x]",
    "y: List[Tensor] = []\ny += [self.w + x]\ny[0].add_(1)",
    "y = [self.w, x + 1]\ny[1] = x * 2",
    "y: List[Tensor] = []\nfor c in self.cache:\n  y.append(c + x)\ny[0].mul_(2)",
    "y = {'a': self.w}\ny['b'] = x",
    "y = {'a': self.w}\ny['a'] += x\nreturn y['a']",
    "a, b = (x + 1, self.w)\na.add_(b)",
    "y = self.sizes + [1]\ny.append(2)",
    "y = x.size()\ny.append(self.n)",
    "y = CONSTANTS.c0 + x\ny.mul_(2)",
    "y = __torch__.Box(x + 1)\ny.t.add_(self.w)\ny.t = x * 2",
    "y = (self.sub).forward(x)\ny.add_(1)",
    "y = fork((self.sub).forward, x)\nz = y.wait()\nz = z + 1\nz.add_(1)",
    "y = torch.rand_like(x) + torch.dropout(x, 0.5, True)\ny.add_(1)",
    "if self.training:\n  self.n += 1\n  self.w.add_(x)",
    "y = torch.batch_norm(x.view([1, 1]), None, None, self.w, self.w, False, 0.1, 0.00001, False)\ny.relu_()",
    "y = torch.batch_norm(x.view([1, 1]), None, None, self.w, self.w, self.training, 0.1, 0.00001, False)",
    "y = torch.batch_norm(x.view([1, 1]), None, None, None, None, True, 0.1, 0.00001, False)",
    "y = torch.instance_norm(x.view([1, 1, 1]), None, None, None, None, True, 0.1, 0.00001, False)",
    "a, b, c = torch.native_batch_norm(x.view([1, 1]), None, None, self.w, self.w, False, 0.1, 0.00001)",
    "a, b, c = torch._native_batch_norm_legit(x.view([1, 1]), None, None, self.w, self.w, False, 0.1, 0.00001)",
    "h = torch.zeros([1, 1, 2])\na, b, c = torch.lstm(x.view([1, 1, 1]), [h, h], [self.p.expand([8, 1]), self.p.expand([8, 2])], False, 1, 0.0, False, False, False)\nb.add_(1)",
    "y = torch.scaled_dot_product_attention(x.view([1, 1]), self.p.view([1, 1]), self.p.view([1, 1]))\ny.add_(1)",
    "y = torch.layer_norm(x, [1], self.p, self.w)\ny = torch.gelu(y)\ny.add_(1)",
    "y = torch.embedding(self.p.view([1, 1]), torch.zeros([1], dtype=4))\ny.mul_(2)",
    "y = torch.split(x * 2, [1])\ny[0].add_(self.w)",
    "y = torch.einsum('i,j->ij', [x, self.w])\ny.add_(1)\nreturn y",
    "if self.flag:\n  self.n += 1",
    "y = torch.batch_norm(x.view([1, 1]), None, None, self.w, self.w, self.flag, 0.1, 0.00001, False)",
    "print(x)\nassert bool(x.sum() > 0)",
];

#[test]
fn a_write_to_anything_that_hangs_on_the_module_is_state() {
    let folder = TempDir::new().unwrap();
    for body in WRITES_TO_THE_MODULE.iter().chain(MAY_WRITE_TO_THE_MODULE) {
        let method = forward(&folder, body);
        assert!(method.is_stateful && !method.writes_constants, "{body}: {method:?}");
    }
}

#[test]
fn a_write_to_a_captured_constant_is_state() {
    let folder = TempDir::new().unwrap();
    for body in WRITES_TO_A_CONSTANT {
        let method = forward(&folder, body);
        assert!(method.is_stateful && method.writes_constants, "{body}: {method:?}");
    }
}

#[test]
fn what_a_method_makes_itself_it_may_write_to_without_being_stateful() {
    let folder = TempDir::new().unwrap();
    for body in KEEPS_NOTHING {
        let method = forward(&folder, body);
        assert!(!method.is_stateful && !method.mutates_inputs, "{body}: {method:?}");
    }
}

#[test]
fn what_is_found_without_running_is_what_a_run_shows() {
    let folder = TempDir::new().unwrap();
    for body in WRITES_TO_THE_MODULE.iter().chain(WRITES_TO_A_CONSTANT) {
        assert!(
            leaves_a_trace(&folder, body),
            "{body}
"
        );
    }
    for body in KEEPS_NOTHING {
        assert!(
            !leaves_a_trace(&folder, body),
            "{body}
"
        );
    }
}

#[test]
fn a_write_to_an_argument_is_told_apart_from_state() {
    let folder = TempDir::new().unwrap();
    for body in ["x.add_(self.w)", "x.view([-1])[0] = 1.0", "y = [x, self.w]\nz = torch.split(x, [1])\nz[0].add_(1)"] {
        let method = forward(&folder, body);
        assert!(!method.is_stateful && method.mutates_inputs, "{body}: {method:?}");
    }
}

#[test]
fn a_method_that_draws_random_numbers_is_told() {
    let folder = TempDir::new().unwrap();
    for (body, is_random) in [
        ("y = torch.rand_like(x)\nreturn y", true),
        ("return torch.dropout(x, 0.5, True)", true),
        ("return torch.dropout(x, 0.5, False)", false),
        ("return torch.dropout(x, 0.5, self.training)", false),
        ("return x + 1", false),
    ] {
        assert_eq!(forward(&folder, body).is_random, is_random, "{body}");
    }
}

#[test]
fn a_kept_input_that_is_written_to_later_is_both() {
    let folder = TempDir::new().unwrap();
    let method = forward(&folder, "self.w = x\nself.w.add_(1)");
    assert!(method.is_stateful && method.mutates_inputs, "{method:?}");
}

#[test]
fn other_methods_do_not_make_a_method_stateful() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.pt");
    let source = class("y = x + self.w").replace(
        "  def forward(self: __torch__.Model",
        "  def count(self: __torch__.Model) -> int:\n    self.n += 1\n    return self.n\n  def forward(self: __torch__.Model",
    );
    define_classes(&source, &path).unwrap();
    let facts = Module::load(&path, Device::Cpu).unwrap().describe().unwrap();
    assert!(facts.method("count").unwrap().is_stateful);
    assert!(!facts.method("forward").unwrap().is_stateful);
}
