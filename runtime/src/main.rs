//! Entry point of the runtime.

fn main() {}
