//! Quantities written as numbers: `cpu: 2` means `cpu: "2"`, as in any other Kubernetes manifest.
//!
//! Kubernetes' own types in Rust read texts only. Used where the API holds quantities, which are two fields of [`crate::spec`].

use k8s_openapi::api::core::v1::{EnvVar, ResourceRequirements};
use serde::{Deserialize as _, Deserializer, de::Error as _};
use serde_json::Value;

/// Reads resources whose quantities are texts or numbers.
///
/// # Errors
/// What is not a ResourceRequirements of Kubernetes.
pub fn resources<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ResourceRequirements>, D::Error> {
    let mut resources = Value::deserialize(deserializer)?;
    for field in ["limits", "requests"] {
        let quantities = resources.get_mut(field).and_then(Value::as_object_mut);
        quantities.into_iter().flat_map(|quantities| quantities.values_mut()).for_each(write_as_text);
    }
    serde_json::from_value(resources).map_err(D::Error::custom)
}

/// Reads environment variables, one of which may take a resource of the container, divided by a text or a number.
///
/// # Errors
/// What is not a list of EnvVar of Kubernetes.
pub fn environment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<EnvVar>, D::Error> {
    let mut variables = Vec::<Value>::deserialize(deserializer)?;
    for variable in &mut variables {
        variable.pointer_mut("/valueFrom/resourceFieldRef/divisor").into_iter().for_each(write_as_text);
    }
    serde_json::from_value(variables.into()).map_err(D::Error::custom)
}

fn write_as_text(quantity: &mut Value) {
    if let Value::Number(number) = quantity {
        *quantity = number.to_string().into();
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use crate::TorchModelSpec;

    fn read(yaml: &str) -> TorchModelSpec {
        serde_yaml::from_str(&format!("source: {{uri: s3://b/k}}\n{yaml}")).unwrap()
    }

    #[test]
    fn a_number_is_the_quantity_that_it_looks_like() {
        let spec = read("resources: {limits: {cpu: 2, memory: 4Gi}, requests: {cpu: 0.5}}");
        let resources = spec.resources.unwrap();
        assert_eq!(resources.limits.as_ref().unwrap()["cpu"], Quantity("2".to_owned()));
        assert_eq!(resources.limits.as_ref().unwrap()["memory"], Quantity("4Gi".to_owned()));
        assert_eq!(resources.requests.as_ref().unwrap()["cpu"], Quantity("0.5".to_owned()));
    }

    #[test]
    fn a_divisor_may_be_a_number() {
        let variable =
            "{name: CPUS, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1}}}, {name: A, value: '1'}";
        let environment = read(&format!("runtime: {{env: [{variable}]}}")).runtime.unwrap().env;
        let reference = environment[0].value_from.as_ref().unwrap().resource_field_ref.as_ref().unwrap();
        assert_eq!(reference.divisor, Some(Quantity("1".to_owned())));
        assert_eq!(environment[1].value.as_deref(), Some("1"));
    }

    #[test]
    fn what_kubernetes_does_not_know_is_still_refused() {
        for yaml in ["resources: {limits: {cpu: true}}", "resources: [1]", "runtime: {env: [{value: a}, 3]}"] {
            let text = format!("source: {{uri: s3://b/k}}\n{yaml}");
            assert!(serde_yaml::from_str::<TorchModelSpec>(&text).is_err(), "{yaml}");
        }
    }
}
