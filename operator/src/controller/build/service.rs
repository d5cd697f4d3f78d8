//! The model's address: one Service with the ports of REST, gRPC and metrics.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{GRPC_PORT, HTTP_PORT, METRICS_PORT, metadata, selector};
use crate::controller::validate::ValidatedModel;

/// A Service of the model's name.
pub fn build_service(model: &ValidatedModel) -> Service {
    Service {
        metadata: metadata(model, &model.name),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(selector(model)),
            ports: Some(vec![
                port("http", HTTP_PORT, "http"),
                // The name that gateways and meshes know for HTTP/2 without TLS.
                port("grpc", GRPC_PORT, "kubernetes.io/h2c"),
                port("metrics", METRICS_PORT, "http"),
            ]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn port(name: &str, port: i32, protocol: &str) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port,
        protocol: Some("TCP".to_owned()),
        app_protocol: Some(protocol.to_owned()),
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    }
}
