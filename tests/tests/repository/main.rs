//! The rules of the repository as tests; they need no cluster.
fn main() {}
