//! What libtorch says of inputs that an operator refuses: each sentence that `src/classify.rs` knows is provoked here, so that the
//! list is what libtorch says and not what somebody thought it says.

use tch::Device;
use tempfile::TempDir;
use torch_shim::{
    Module, TorchErrorKind,
    TorchErrorKind::{Datatype, Index, Shape, Torch},
    define_module,
};

/// Tensors of floats (`f`), doubles (`d`) and whole numbers (`i`) by their shapes; `dtype` is libtorch's number.
const NAMES: &str = "  f0 = torch.ones([0])\n  f23 = torch.ones([2, 3])\n  f33 = torch.ones([3, 3])\n  f3 = torch.ones([3])\n  f4 = torch.ones([4])\n  d33 = torch.ones([3, 3], dtype=7)\n  i3 = torch.ones([3], dtype=4)\n  big = torch.full([3], 7, dtype=4)\n  f1428 = torch.ones([1, 4, 2, 8])\n  w = torch.ones([8, 3, 3, 3])\n";

pub const REFUSED: &[(TorchErrorKind, &str)] = &[
    (Shape, "torch.mm(f23, f23)"),
    (Shape, "torch.mm(f3, f33)"),
    (Shape, "torch.matmul(f23, f4)"),
    (Shape, "torch.matmul(f4, f33)"),
    (Shape, "torch.mv(f33, f4)"),
    (Shape, "torch.dot(f3, f4)"),
    (Shape, "torch.dot(f3, f33)"),
    (Shape, "torch.bmm(f33, f33)"),
    (Shape, "torch.bmm(f33.unsqueeze(0), torch.ones([1, 4, 3]))"),
    (Shape, "torch.bmm(f33.unsqueeze(0), torch.ones([2, 3, 3]))"),
    (Shape, "torch.matmul(f33.unsqueeze(0), torch.ones([1, 4, 3]))"),
    (Shape, "torch.matmul(torch.ones([2, 3, 3]), torch.ones([3, 3, 3]))"),
    (Shape, "torch.addmm(f4, f33, f33)"),
    (Shape, "torch.baddbmm(f33, torch.ones([2, 3, 3]), torch.ones([2, 4, 3]))"),
    (Shape, "torch.linear(f4, f33)"),
    (Shape, "torch.linear(f23, torch.ones([3, 4]), f3)"),
    (Shape, "f3 + f4"),
    (Shape, "f3.add_(f4)"),
    (Shape, "f3.add_(f33)"),
    (Shape, "torch.where(f3 > 0, f3, f4)"),
    (Shape, "f3.expand([2, 4])"),
    (Shape, "f33.expand([3])"),
    (Shape, "f3.copy_(f4)"),
    (Shape, "f23.view([5])"),
    (Shape, "f23.reshape([4, -1])"),
    (Torch, "f23.view([-1, -1])"),
    (Shape, "f23.flatten(2)"),
    (Shape, "f3.transpose(0, 1)"),
    (Shape, "f3.sum(1)"),
    (Shape, "f23.permute([0])"),
    (Shape, "f23.t_().unsqueeze(0).t()"),
    (Shape, "torch.cat([f23, f33], 1)"),
    (Shape, "torch.cat([f23, f3])"),
    (Shape, "torch.stack([f3, f4])"),
    (Shape, "f3.narrow(0, 2, 2)"),
    (Shape, "torch.split(f4, [1, 1])"),
    (Shape, "f3.unflatten(0, [2, 2])"),
    (Shape, "torch.conv2d(f1428, w)"),
    (Shape, "torch.conv2d(f23, w)"),
    (Shape, "torch.conv2d(torch.ones([1, 3, 2, 2]), w)"),
    (Shape, "torch.conv1d(torch.ones([1, 4, 8]), torch.ones([8, 3, 3]))"),
    (Shape, "torch.conv_transpose2d(f1428, torch.ones([3, 8, 3, 3]))"),
    (Shape, "torch.conv3d(torch.ones([1, 4, 8, 8, 8]), torch.ones([8, 3, 3, 3, 3]))"),
    (Shape, "torch.batch_norm(f1428, None, None, f3, f3, False, 0.1, 0.00001, False)"),
    (Shape, "torch.layer_norm(f23, [4])"),
    (Shape, "torch.group_norm(f1428, 3)"),
    (Shape, "torch.max_pool2d(f23, [2, 2])"),
    (Shape, "torch.max_pool2d(f1428, [3, 3])"),
    (Shape, "torch.avg_pool2d(f23, [2, 2])"),
    (Shape, "torch.adaptive_avg_pool2d(f3, [1, 1])"),
    (Shape, "torch.pad(f3, [1, 1, 1, 1])"),
    (Shape, "torch.pad(torch.ones([1, 1, 2]), [3, 3], 'reflect')"),
    (Shape, "torch.scaled_dot_product_attention(torch.ones([1, 2, 3]), torch.ones([1, 2, 4]), torch.ones([1, 2, 4]))"),
    (
        Shape,
        "torch.lstm(f23, [torch.zeros([1, 2]), torch.zeros([1, 2])], [torch.ones([8, 4]), torch.ones([8, 2]), torch.ones([8]), torch.ones([8])], True, 1, 0.0, False, False, False)",
    ),
    (Shape, "f3.item()"),
    (Shape, "1 if bool(f3 > 0) else 2"),
    (Shape, "int(f3)"),
    (Shape, "f33[f4 > 0]"),
    (Shape, "f33.masked_fill(f4 > 0, 0.0)"),
    (Shape, "f3.unbind(1)"),
    (Shape, "torch.einsum('ij,jk->ik', [f23, f23])"),
    (Shape, "torch.einsum('ij->ji', [f3])"),
    (Shape, "torch.gather(f33, 0, i3)"),
    (Shape, "f33.squeeze(3)"),
    (Shape, "torch.cdist(f23, torch.ones([3, 4]))"),
    (Shape, "torch.cross(f23, f4.unsqueeze(0), 1)"),
    (Shape, "torch.stft(f3, 8, return_complex=True)"),
    (Shape, "torch.mm(f33, f3)"),
    (Shape, "torch.bmm(f33.unsqueeze(0), f33)"),
    (Shape, "f0.reshape([-1, 0])"),
    (Shape, "torch.max(f0)"),
    (Shape, "torch.argmax(f0)"),
    (Shape, "1 if bool(f0) else 2"),
    (Shape, "torch.cat(f0.unbind())"),
    (Shape, "torch.stack(f0.unbind())"),
    (Shape, "f23.unfold(0, 5, 1)"),
    (Shape, "pair(f3.unbind())"),
    (Shape, "pair2(f3.size())"),
    (Shape, "torch.upsample_nearest2d(f3, [2, 2])"),
    (Shape, "torch.upsample_bilinear2d(f3, [2, 2], False)"),
    (Index, "f0[0]"),
    (Index, "torch.embedding(f23, big)"),
    (Index, "torch.embedding(f23, -big)"),
    (Index, "f3[5]"),
    (Index, "f33[big]"),
    (Index, "torch.gather(f3, 0, big)"),
    (Index, "torch.index_select(f3, 0, big)"),
    (Index, "f3.scatter(0, big, 1.0)"),
    (Index, "f3.index_add(0, big, f3)"),
    (Index, "f23.select(0, 4)"),
    (Index, "f3.take(big)"),
    (Index, "torch.one_hot(big, 3)"),
    (Index, "torch.one_hot(-big, 3)"),
    (Index, "[1, 2][int(big[0])]"),
    (Shape, "f3.size(2)"),
    (Index, "f3.size()[2]"),
    (Index, "{'a': 1}['b']"),
    (Index, "{1: 1}[2]"),
    (Index, "'abc'[7]"),
    (Datatype, "torch.mm(f33, d33)"),
    (Datatype, "torch.matmul(f33, d33)"),
    (Datatype, "torch.linear(d33, f33)"),
    (Datatype, "torch.linear(i3, f33)"),
    (Datatype, "torch.bmm(f33.unsqueeze(0), d33.unsqueeze(0))"),
    (Datatype, "torch.dot(f3, i3)"),
    (Datatype, "torch.addmm(f33, f33, d33)"),
    (Datatype, "torch.embedding(f33, f3)"),
    (Datatype, "f33[f3]"),
    (Datatype, "torch.conv2d(torch.ones([1, 3, 8, 8], dtype=7), w)"),
    (Datatype, "torch.conv2d(torch.ones([1, 3, 8, 8], dtype=4), w)"),
    (Datatype, "torch.layer_norm(d33, [3], f3, f3)"),
    (Datatype, "torch.batch_norm(torch.ones([1, 3, 2], dtype=7), f3, f3, f3, f3, False, 0.1, 0.00001, False)"),
    (Datatype, "torch.softmax(i3, 0)"),
    (Datatype, "torch.mean(i3)"),
    (Datatype, "torch.var(i3)"),
    (Datatype, "i3.add_(f3)"),
    (Datatype, "i3.div_(i3)"),
    (Datatype, "f3 & f3"),
    (Datatype, "~f3"),
    (Datatype, "f3 << 1"),
    (Datatype, "(f3 > 0) - (f3 > 0)"),
    (Datatype, "-(f3 > 0)"),
    (Datatype, "torch.gather(f3, 0, f3)"),
    (Datatype, "torch.index_select(f3, 0, f3)"),
    (Datatype, "f3.masked_fill(f3, 0.0)"),
    (Datatype, "torch.where(i3, f3, f3)"),
    (Datatype, "torch.one_hot(f3)"),
    (Datatype, "torch.gelu(i3)"),
    (Datatype, "torch.sigmoid(f3.to(9)).relu()"),
    (Datatype, "torch.scaled_dot_product_attention(f33.unsqueeze(0), d33.unsqueeze(0), d33.unsqueeze(0))"),
    (Torch, "torch.linalg_inv(torch.zeros([2, 2]))"),
    (Torch, "1 // int(f3[0] - 1)"),
    (Torch, "torch.ones([2], device='meta').to('cpu')"),
];

/// The fault of an `expression` over tensors on `device`, a name of libtorch's.
pub fn fault(folder: &TempDir, expression: &str, device: &str) -> (TorchErrorKind, String) {
    let path = folder.path().join("model.pt");
    let unpack = "  a, b = x\n  return a\n";
    let source = format!(
        "def pair(self, x: List[Tensor]):\n{unpack}def pair2(self, x: List[int]):\n{unpack}def forward(self):\n{NAMES}  return {}\n",
        expression.replace("pair", "self.pair")
    );
    let source = if device == "cpu" { source } else { placed(&source, device) };
    define_module(&source, &[], &path).unwrap_or_else(|error| panic!("{expression}: {error}"));
    let error = Module::load(&path, Device::Cpu).unwrap().run("forward", &[]).err();
    let error = error.unwrap_or_else(|| panic!("{expression} is not refused"));
    (error.kind, error.sentence().to_owned())
}

/// The same source with each of its tensors on `device`.
fn placed(source: &str, device: &str) -> String {
    let mut parts = source.split("torch.ones([");
    let first = parts.next().unwrap().to_owned();
    let placed = parts.fold(first, |placed, part| {
        let (shape, rest) = part.split_once(']').unwrap();
        placed + &format!("torch.ones([{shape}], device='{device}'{rest}")
    });
    placed.replace("torch.full([3], 7, ", &format!("torch.full([3], 7, device='{device}', "))
}

#[test]
fn each_refusal_of_an_operator_is_known_by_its_kind() {
    let folder = TempDir::new().unwrap();
    for (kind, expression) in REFUSED {
        let (found, sentence) = fault(&folder, expression, "cpu");
        assert_eq!(found, *kind, "{expression}: {sentence}");
    }
}
