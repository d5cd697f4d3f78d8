//! What tests of several crates need: a server on free ports, clients of both protocols, and tensors in each form that these have.
//!
//! A dev-dependency of `runtime/server`, `runtime` and `tests`. Invariants: it knows no libtorch, so that the server's tests compile
//! without; what goes wrong panics, since it is a test that fails.

#![expect(clippy::missing_panics_doc, reason = "a test that fails panics")]

mod client;
mod served;
mod tensor;

pub use self::{
    client::{Answer, exchange, grpc, http, raw},
    served::{Bounds, Served},
    tensor::{
        TestTensor, bytes_element, fp32_values, grpc_input, grpc_request, json_input, rest_outputs, to_contents,
        to_json,
    },
};
