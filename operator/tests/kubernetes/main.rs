//! The operator against a real API server, and the chart with which it is installed.
//!
//! One program, so that it is linked once: `reconcile` shares one operator for the whole cluster, `lifecycle` starts its own, each
//! for one namespace of another API server. Needs `make cluster-programs`.

mod api_server;
mod chart;
mod cluster;
mod helm;
mod lifecycle;
mod reconcile;
