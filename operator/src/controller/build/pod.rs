//! A pod that serves a model: one container that fetches, verifies, loads, warms up and answers.
//!
//! Invariants: the security context is the one that the "restricted" Pod Security Standard asks for; nothing here depends on
//! the operator's version.

use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, HTTPGetAction,
        PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, SeccompProfile,
        SecretVolumeSource, SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::core::ObjectMeta;
use torchmodel_crds::Duration;

use super::{CONTAINER, GRPC_PORT, HTTP_PORT, METRICS_PORT, config_map, labels, service_account_name};
use crate::controller::validate::{SOURCE_MOUNT, ValidatedModel};

const CONFIGURATION_MOUNT: &str = "/etc/torchmodel";
const CREDENTIALS_MOUNT: &str = "/etc/torchmodel-credentials";
const CACHE_MOUNT: &str = "/var/cache/torchmodel";
const TEMPORARY_MOUNT: &str = "/tmp";
/// The user "nonroot" of common base images.
const USER: i64 = 65532;
/// How long a terminating pod goes on answering, since load balancers go on sending.
const SHUTDOWN_DELAY: Span = Span { flag: "--shutdown-delay", variable: "TORCHMODEL_SHUTDOWN_DELAY", default: "3s" };
/// How long requests in flight may take after that.
const DRAIN_TIMEOUT: Span = Span { flag: "--drain-timeout", variable: "TORCHMODEL_DRAIN_TIMEOUT", default: "30s" };
/// Time between the end of the drain and the kill.
const GRACE_AFTER_DRAIN: std::time::Duration = std::time::Duration::from_secs(10);

/// The template of a model's pods, which read the ConfigMap of that name.
pub fn build_pod_template(model: &ValidatedModel, config_map: &str) -> PodTemplateSpec {
    let environment = environment(model);
    let grace = [&SHUTDOWN_DELAY, &DRAIN_TIMEOUT]
        .map(|span| span.get(&model.container.args, &environment))
        .into_iter()
        .fold(GRACE_AFTER_DRAIN, std::time::Duration::saturating_add);
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels(model)), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            service_account_name: Some(service_account_name(model).to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            // The first process of a namespace is deaf to signals until it listens, and loading libtorch comes before that: a pod
            // deleted as it starts would stay for its whole grace period. With this, the sandbox's own process is the first.
            share_process_namespace: Some(true),
            node_selector: (!model.node_selector.is_empty()).then(|| model.node_selector.clone()),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            termination_grace_period_seconds: Some(i64::try_from(grace.as_secs()).unwrap_or(i64::MAX)),
            containers: vec![build_container(model, environment)],
            volumes: Some(mounts(model, config_map).into_iter().map(|(volume, _)| volume).collect()),
            ..PodSpec::default()
        }),
    }
}

fn build_container(model: &ValidatedModel, environment: Vec<EnvVar>) -> Container {
    let file = format!("{CONFIGURATION_MOUNT}/{}", config_map::KEY);
    let mut args = vec!["serve".to_owned(), "--file".to_owned(), file];
    args.extend(model.container.args.iter().cloned());
    Container {
        name: CONTAINER.to_owned(),
        image: Some(model.container.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(args),
        env: Some(environment),
        ports: Some(vec![port("http", HTTP_PORT), port("grpc", GRPC_PORT), port("metrics", METRICS_PORT)]),
        resources: model.container.resources.clone(),
        volume_mounts: Some(mounts(model, "").into_iter().map(|(_, mount)| mount).collect()),
        readiness_probe: Some(Probe {
            period_seconds: Some(1),
            failure_threshold: Some(2),
            timeout_seconds: Some(2),
            ..probe("/v2/health/ready")
        }),
        liveness_probe: Some(Probe {
            period_seconds: Some(10),
            failure_threshold: Some(3),
            timeout_seconds: Some(5),
            ..probe("/v2/health/live")
        }),
        termination_message_path: Some("/dev/termination-log".to_owned()),
        termination_message_policy: Some("File".to_owned()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// A span of time that the runtime takes from a flag, or else from its environment.
struct Span {
    flag: &'static str,
    variable: &'static str,
    default: &'static str,
}

impl Span {
    /// What the runtime will make of it. A value that it will refuse, or that only the pod will know, counts as the default.
    fn get(&self, args: &[String], environment: &[EnvVar]) -> std::time::Duration {
        // `--flag=VALUE`, or `--flag` and then `VALUE`.
        let flag = args.iter().enumerate().find_map(|(at, arg)| match arg.strip_prefix(self.flag)? {
            "" => args.get(at + 1).map(String::as_str),
            rest => rest.strip_prefix('='),
        });
        let said = flag.or_else(|| environment.iter().find(|entry| entry.name == self.variable)?.value.as_deref());
        let parsed = [said, Some(self.default)].into_iter().flatten().find_map(|text| text.parse::<Duration>().ok());
        parsed.map_or(std::time::Duration::ZERO, Duration::get)
    }
}

/// Environment by rising precedence: defaults, the operator's flags (the chart's `runtime.env`), what the pod's own layout and
/// the fields of the manifest ask for, `spec.runtime.env`. A name stands once. The runtime's flags, in `spec.runtime.args`,
/// win over all of it.
fn environment(model: &ValidatedModel) -> Vec<EnvVar> {
    let defaults = [&SHUTDOWN_DELAY, &DRAIN_TIMEOUT].map(|span| variable(span.variable, span.default));
    let flags = model.container.default_env.iter().map(|(name, value)| variable(name, value));
    let mut layout = vec![variable("HOME", TEMPORARY_MOUNT), variable("TORCHMODEL_CACHE_DIR", CACHE_MOUNT)];
    if let Some(timeout) = model.drain_timeout {
        layout.push(variable(DRAIN_TIMEOUT.variable, &Duration::from(timeout).to_string()));
    }
    // Whoever pays for a GPU must not be served by the CPU without being told.
    if model.container.has_accelerator {
        layout.push(variable("TORCHMODEL_DEVICE", "cuda"));
    }
    if model.credentials.is_some() {
        layout.push(variable("TORCHMODEL_CREDENTIALS_DIR", CREDENTIALS_MOUNT));
    }
    let mut environment: Vec<EnvVar> = Vec::new();
    for entry in defaults.into_iter().chain(flags).chain(layout).chain(model.container.env.iter().cloned()) {
        match environment.iter_mut().find(|known| known.name == entry.name) {
            Some(known) => *known = entry,
            None => environment.push(entry),
        }
    }
    environment
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), ..EnvVar::default() }
}

/// Each volume with its mount.
fn mounts(model: &ValidatedModel, config_map: &str) -> Vec<(Volume, VolumeMount)> {
    let empty = || Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() };
    let configuration = Volume {
        config_map: Some(ConfigMapVolumeSource { name: config_map.to_owned(), ..ConfigMapVolumeSource::default() }),
        ..Volume::default()
    };
    let mut mounts = vec![
        mount("configuration", CONFIGURATION_MOUNT, true, configuration),
        mount("cache", CACHE_MOUNT, false, empty()),
        mount("tmp", TEMPORARY_MOUNT, false, empty()),
    ];
    if let Some(secret) = &model.credentials {
        let volume = Volume {
            // A missing Secret must not hold the pod back: the runtime says CredentialsMissing, where anyone can read it.
            secret: Some(SecretVolumeSource {
                secret_name: Some(secret.clone()),
                optional: Some(true),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        };
        mounts.push(mount("credentials", CREDENTIALS_MOUNT, true, volume));
    }
    if let Some(claim) = &model.claim_name {
        let volume = Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                read_only: Some(true),
            }),
            ..Volume::default()
        };
        mounts.push(mount("source", SOURCE_MOUNT, true, volume));
    }
    mounts
}

fn mount(name: &str, path: &str, is_read_only: bool, volume: Volume) -> (Volume, VolumeMount) {
    let mount = VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: is_read_only.then_some(true),
        ..VolumeMount::default()
    };
    (Volume { name: name.to_owned(), ..volume }, mount)
}

fn port(name: &str, port: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: port,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// A question to the port for metrics, which clients do not use: however many connections they keep open on theirs, kubelet is
/// heard.
fn probe(path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("metrics".to_owned()),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    }
}
