//! The runtime with its real engine: models made here and the demo's, loaded, batched and asked over both protocols.

mod models;
mod silero;
mod state;
mod support;
