//! Whether shapes alone decide how long a method runs: what is missed holds up every connection of a thread, and what is imagined costs
//! quick models a wake-up for each request.

use tch::Device;
use tempfile::TempDir;
use torch_shim::{Module, define_classes};

use crate::effects::{class, forward};

const DEPENDS: &[&str] = &[
    "for i in range(int(x[0])):\n  x = x + 1",
    "while bool(x.sum() > 0):\n  x = x - 1",
    "y = x @ x if bool(x.sum() > 0) else x\nreturn y",
    "n = int(x.max())\nreturn torch.zeros([n, n])",
    "return torch.arange(torch.max(x).item())",
    "n = annotate(List[float], x.tolist())\nfor i in n:\n  x = x + i",
    "if torch.equal(x, self.w):\n  x = x @ x",
    "if torch.allclose(x, self.w):\n  x = x @ x",
    "if torch.is_nonzero(x):\n  x = x @ x",
    "y = [x, self.w]\nfor i in range(int(y[0])):\n  x = x + 1",
    "return torch.nonzero(x)",
    "return torch.argwhere(x)",
    "return torch.masked_select(x, torch.gt(x, 0))",
    "return torch.bincount(x)",
    "return torch.one_hot(x)",
    "return torch.repeat_interleave(x, x)",
    "return torch.where(torch.gt(x, 0))[0]",
    "a, b = torch._unique(x)\nreturn a",
    "a, b, c = torch.unique_consecutive(x)\nreturn a",
    "return torch.tensor_split(x, x)[0]",
    "return torch.to_dense(torch.to_sparse(x))",
    "return x[torch.gt(x, 0)]",
    "y = x[self.w]\nfor i in range(y.size(0)):\n  x = x + 1",
    "y = fork((self.sub).forward, x)\nfor i in range(int(y.wait())):\n  x = x + 1",
    "y = __torch__.Box(x)\nfor i in range(int(y.t)):\n  x = x + 1",
    "n = ops.prim.NumToTensor(torch.size(x, 0))\nm = torch.mul(n, x)\nfor i in range(int(m)):\n  x = x + 1",
    "n = ops.prim.NumToTensor(torch.size(x, 0))\nn.add_(x.sum())\nfor i in range(int(n)):\n  x = x + 1",
    "n = ops.prim.NumToTensor(torch.size(x, 0))\nm = torch.mul(x, 2, out=n)\nfor i in range(int(n)):\n  x = x + 1",
    "n = ops.prim.TimePoint()\nif n > 0:\n  x = x @ x",
    "self.w = x",
    "return (self.scaler).forward(x)",
];

const IS_OF_SHAPES: &[&str] = &[
    "return x + self.w",
    "y = torch.relu(torch.linear(x, self.p.view([1, 1]), self.w))\nreturn torch.softmax(torch.linear(y, self.p.view([1, 1])), 1)",
    "for i in range(x.size(0)):\n  x = x + self.w",
    "for i in range(x.shape[0]):\n  x = torch.layer_norm(x, [1], self.p, self.w)",
    "for c in self.cache:\n  x = x + c",
    "for k, v in self.d.items():\n  x = x + v",
    "for i in range(self.n):\n  x = (self.sub).forward(x)",
    "y = [x, self.w]\ny.append(x)\nreturn y[len(y) - 1] + torch.cat(y)",
    "y = torch._convolution(x, self.w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, False, False, True, True)
y = torch.batch_norm(y, self.p, self.w, self.w, self.w, False, 0.1, 0.00001, True)
y = torch.max_pool2d(torch.relu_(y), [2, 2], [2, 2], [0, 0], [1, 1], False)
y = torch.flatten(torch.adaptive_avg_pool2d(y, [1, 1]), 1)
return torch.linear(y, self.p, self.w)",
    "n = ops.prim.NumToTensor(torch.size(x, 0))
m = torch.floor_divide(torch.mul(n, CONSTANTS.c0), CONSTANTS.c0)
y = torch.view(x, [int(n), int(m), -1])
return torch.scaled_dot_product_attention(y, y, y)",
    "h = torch.zeros([1, 1, 2])
a, b, c = torch.lstm(x.view([1, 1, 1]), [h, h], [self.p.expand([8, 1]), self.p.expand([8, 2])], False, 1, 0.0, False, False, False)
return a",
    "y = torch.embedding(self.p, x)\nreturn torch.index(y, [x])",
    "if x.dim() == 3 and x.is_cuda and not x.requires_grad and torch.is_floating_point(x):\n  x = x.unsqueeze(0)",
    "if self.training:\n  x = x[torch.gt(x, 0)]",
    "if self.flag:\n  x = torch.nonzero(x)",
    "y: Optional[Tensor] = None\nif y is not None:\n  x = x[torch.gt(y, 0)]",
    "y = fork((self.sub).forward, x)\nreturn y.wait()",
    "return torch.dropout(x, 0.5, True) + torch.rand_like(x)",
];

#[test]
fn a_method_that_reads_values_or_keeps_state_may_take_any_time() {
    let folder = TempDir::new().unwrap();
    for body in DEPENDS {
        assert!(forward(&folder, body).duration_depends_on_values, "{body}");
    }
}

#[test]
fn a_method_that_looks_at_shapes_alone_takes_time_by_them() {
    let folder = TempDir::new().unwrap();
    for body in IS_OF_SHAPES {
        assert!(!forward(&folder, body).duration_depends_on_values, "{body}");
    }
}

#[test]
fn an_argument_that_is_no_tensor_counts_once_it_is_used() {
    let folder = TempDir::new().unwrap();
    for (argument, body, expected) in [
        ("n: int", "for i in range(n):\n  x = x + 1", true),
        ("n: int", "return x.repeat([n])", true),
        ("n: int", "return x", false),
        ("n: bool", "if n:\n  x = x @ x", true),
        ("n: List[str]", "for s in n:\n  x = x + 1", true),
        ("n: Dict[str, Tensor]", "return n['a']", true),
        ("n: List[Tensor]", "for t in n:\n  x = x + t", true),
        ("n: Optional[Tensor]", "if n is not None:\n  x = x + n", false),
        ("n: Tuple[Tensor, Tensor]", "a, b = n\nreturn a + b", false),
        ("n: Tuple[Tensor, int]", "a, b = n\nreturn a + b", true),
    ] {
        let path = folder.path().join("model.pt");
        let source = class(body).replace("Model, x: Tensor)", &format!("Model, x: Tensor, {argument})"));
        define_classes(&source, &path).unwrap_or_else(|error| panic!("{argument}, {body}: {error}"));
        let facts = Module::load(&path, Device::Cpu).unwrap().describe().unwrap();
        assert_eq!(facts.method("forward").unwrap().duration_depends_on_values, expected, "{argument}, {body}");
    }
}
