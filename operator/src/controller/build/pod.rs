//! A pod that serves a model: one container that fetches, verifies, loads, warms up and answers.
//!
//! Invariants: the security context is the one that the "restricted" Pod Security Standard asks for; nothing here depends on
//! the operator's version.

use std::iter;

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
/// How long a pod that was told to stop goes on answering, since load balancers go on sending: written into the pod, where the
/// operator's flags and the manifest may say something else.
const SHUTDOWN_DELAY: (&str, &str) = ("TORCHMODEL_SHUTDOWN_DELAY", "3s");
/// Time between the end of the drain and the kill.
const GRACE_AFTER_DRAIN: std::time::Duration = std::time::Duration::from_secs(10);

/// The template of a model's pods, which read the ConfigMap of that name.
pub fn build_pod_template(model: &ValidatedModel, config_map: &str) -> PodTemplateSpec {
    let environment = environment(model);
    let grace = model.drain_timeout.saturating_add(shutdown_delay(&environment)).saturating_add(GRACE_AFTER_DRAIN);
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels(model)), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            service_account_name: Some(service_account_name(model).to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
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

/// What the pod is told about the delay. A value that the runtime will refuse, or that only the pod will know, counts as the default.
fn shutdown_delay(environment: &[EnvVar]) -> std::time::Duration {
    let (name, default) = SHUTDOWN_DELAY;
    let said = environment.iter().find(|variable| variable.name == name).and_then(|variable| variable.value.as_deref());
    let parsed = [said, Some(default)].into_iter().flatten().find_map(|text| text.parse::<Duration>().ok());
    parsed.map_or(std::time::Duration::ZERO, Duration::get)
}

/// Environment by rising precedence: defaults, the operator's flags, what the pod's own layout asks for, the manifest. A name
/// stands once.
fn environment(model: &ValidatedModel) -> Vec<EnvVar> {
    let mut layout = vec![
        ("HOME", TEMPORARY_MOUNT.to_owned()),
        ("TORCHMODEL_CACHE_DIR", CACHE_MOUNT.to_owned()),
        ("TORCHMODEL_DRAIN_TIMEOUT", Duration::from(model.drain_timeout).to_string()),
    ];
    // Whoever pays for a GPU must not be served by the CPU without being told.
    if model.container.has_accelerator {
        layout.push(("TORCHMODEL_DEVICE", "cuda".to_owned()));
    }
    if model.credentials.is_some() {
        layout.push(("TORCHMODEL_CREDENTIALS_DIR", CREDENTIALS_MOUNT.to_owned()));
    }
    let (name, default) = SHUTDOWN_DELAY;
    let flags = model.container.default_env.iter().map(|(name, value)| variable(name, value));
    let layout = layout.iter().map(|(name, value)| variable(name, value));
    let mut environment: Vec<EnvVar> = Vec::new();
    for entry in
        iter::once(variable(name, default)).chain(flags).chain(layout).chain(model.container.env.iter().cloned())
    {
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

fn probe(path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    }
}
