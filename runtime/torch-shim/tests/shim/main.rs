//! The shim against a real libtorch: models made here, described, run and made to fail.

mod damaged;
mod duration;
mod effects;
mod gpu;
mod module;
mod refused;
mod state;
