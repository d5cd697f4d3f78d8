//! The protocol layer over real sockets, with models that are plain functions.
//!
//! `cases` is one table that REST and gRPC must answer alike; `rest` and `grpc` hold what only one of them has; `intake` fills the
//! server up; `garbage` throws bytes at the ports. Every server binds port 0 and no test sleeps.

mod cases;
mod garbage;
mod grpc;
mod h2_client;
mod intake;
mod repository;
mod rest;
mod server;
mod wire;
