//! The operator against a real API server, cluster-wide and with no more permissions than the chart gives it.
//!
//! One API server and one operator serve every test, each in a namespace of its own, as they would in a cluster.

mod children;
mod failures;
mod manifests;

use std::{
    sync::{OnceLock, mpsc},
    thread,
};

use serde_json::json;

use crate::{
    api_server::{ApiServer, Identity},
    cluster::{Operator, User, install_chart},
};

/// Namespace and user of the operator that serves every test of this program.
const OPERATOR: (&str, &str) = ("torchmodel-system", "system:serviceaccount:torchmodel-system:torchmodel");

/// The one API server, with the chart installed and an operator that runs until the program ends.
fn server() -> &'static ApiServer {
    static SERVER: OnceLock<ApiServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = ApiServer::start();
        let (sender, receiver) = mpsc::channel();
        // A thread of its own, since each test's runtime ends with the test.
        thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async move {
                let account = install_chart(&server, "torchmodel", OPERATOR.0, json!({})).await;
                let identity = Identity::ServiceAccount(OPERATOR.0.to_owned(), account);
                let flags =
                    ["--lease-namespace=torchmodel-system", "--lease-name=torchmodel", "--runtime-image=runtime:test"];
                let _operator = Operator::start(&server, identity, &flags).await;
                sender.send(server).unwrap();
                std::future::pending::<()>().await;
            });
        });
        receiver.recv().expect("the operator starts")
    })
}

/// A person in a namespace of their own.
async fn user(namespace: &str) -> User {
    let server = tokio::task::spawn_blocking(server).await.unwrap();
    User::new(server, namespace).await
}
