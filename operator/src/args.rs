//! The operator's command line.
//!
//! The chart sets every flag; each has a default with which the operator runs outside a cluster too. Invariant: what a flag says
//! about pods (images, environment) is the only thing outside a manifest that can change a pod template.

use std::net::SocketAddr;

use clap::{ArgAction, Parser};
use torchmodel_process::log::LogArguments;

/// Reconciles TorchModels into Deployments of the inference runtime.
#[derive(Clone, Debug, Parser)]
#[command(name = "torchmodel-operator", version)]
pub struct Args {
    /// Namespace to watch; repeat it, or separate several with commas. Left out: the whole cluster
    #[arg(long = "namespace", value_name = "NAMESPACE", env = "TORCHMODEL_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,

    /// Image of pods without an accelerator
    #[arg(long, value_name = "IMAGE", env = "TORCHMODEL_RUNTIME_IMAGE",
          default_value = concat!("torchmodel-runtime:", env!("CARGO_PKG_VERSION")))]
    pub runtime_image: String,

    /// Image of pods with an accelerator
    #[arg(long, value_name = "IMAGE", env = "TORCHMODEL_RUNTIME_CUDA_IMAGE",
          default_value = concat!("torchmodel-runtime-cuda:", env!("CARGO_PKG_VERSION")))]
    pub runtime_cuda_image: String,

    /// Environment variable of every pod; spec.runtime.env of a TorchModel wins over it. May be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_variable)]
    pub runtime_env: Vec<(String, String)>,

    /// Address of /healthz, /readyz and /metrics. `[::]` is every address, IPv4 and IPv6, and where there is no IPv6, every one of
    /// IPv4
    #[arg(long, value_name = "ADDRESS", env = "TORCHMODEL_LISTEN", default_value = "[::]:8080")]
    pub listen: SocketAddr,

    /// Whether replicas of the operator elect a leader, so that only one writes
    #[arg(long, value_name = "BOOL", env = "TORCHMODEL_LEADER_ELECT", default_value_t = true,
          action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub leader_elect: bool,

    /// Namespace of the Lease. Left out: the namespace of the kubeconfig or service account
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE")]
    pub lease_namespace: Option<String>,

    /// Name of the Lease
    #[arg(long, value_name = "NAME", default_value = "torchmodel-operator")]
    pub lease_name: String,

    /// Seconds after which the Lease of a leader that died is free for another
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(3..=3600))]
    pub lease_duration_s: u64,

    /// Name of this process in the Lease. Left out: a random one
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,

    /// The log.
    #[command(flatten)]
    pub log: LogArguments,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["torchmodel-operator"], args].concat())
    }

    #[test]
    fn every_flag_has_a_default() {
        let args = parse(&[]).unwrap();
        assert!(args.leader_elect && args.namespaces.is_empty() && args.runtime_env.is_empty());
        assert_eq!(args.listen.port(), 8080);
    }

    #[test]
    fn namespaces_and_variables_repeat_and_a_value_may_hold_an_equals_sign() {
        let args = parse(&["--namespace=a", "--namespace=b,c", "--runtime-env=X=1=2", "--leader-elect=false"]).unwrap();
        assert_eq!(args.namespaces, ["a", "b", "c"]);
        assert_eq!(args.runtime_env, [("X".to_owned(), "1=2".to_owned())]);
        assert!(!args.leader_elect);
    }

    #[test]
    fn a_variable_without_a_name_is_refused() {
        assert!(parse(&["--runtime-env", "=1"]).is_err());
        assert!(parse(&["--runtime-env", "X"]).is_err());
    }
}
