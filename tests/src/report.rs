//! What a person would look at when a test fails: printed before the namespace is deleted.

use std::fmt::Write as _;

use crate::Namespace;

/// Prints the namespace's objects, events and logs, and the operator's log.
pub async fn report(namespace: Namespace<'_>) {
    let questions: [&[&str]; 4] = [
        &["get", "all", "--output=wide"],
        &["get", "torchmodels", "--output=yaml", "--show-managed-fields=false"],
        &["get", "events", "--sort-by=.lastTimestamp"],
        &["logs", "--selector=app.kubernetes.io/name=torchmodel-runtime", "--prefix", "--tail=30"],
    ];
    let mut text = String::new();
    for arguments in questions {
        let answer = namespace.kubectl(arguments).await.unwrap_or_else(|error| error.to_string());
        let _ = write!(text, "\n$ kubectl --namespace {} {}\n{answer}", namespace.name, arguments.join(" "));
    }
    eprintln!("{text}\n$ kubectl logs (operator)\n{}", namespace.cluster.operator_log().await);
}
