//! What the operator and the runtime do alike as processes, so that a person who knows one knows the other.
//!
//! Both programs use all of it; any crate may say errors and sizes with [`error_chain`], [`format_bytes`] and [`format_rate`], which
//! depend on nothing. Invariant: nothing here knows Kubernetes, models or a protocol.

mod errors;
mod sizes;

#[cfg(feature = "program")]
pub mod log;
#[cfg(feature = "program")]
mod ports;
#[cfg(feature = "program")]
mod signals;

pub use errors::{error_chain, error_chain_by};
#[cfg(feature = "program")]
pub use ports::listen;
#[cfg(feature = "program")]
pub use signals::Signals;
pub use sizes::{format_bytes, format_rate};
