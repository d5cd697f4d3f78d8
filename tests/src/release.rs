//! The chart as a release of its own in a namespace of its own.

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _, runtime::watcher};

use crate::{
    Settings,
    command::run,
    wait::{eventually_any, gone},
};

const CHART: &str = "charts/torchmodel";

/// An installed chart.
#[derive(Debug)]
pub struct Release {
    name: String,
    values: Vec<String>,
}

impl Release {
    /// `helm install` with the images and the S3 server of the settings; `name` is the release's and its namespace's.
    pub async fn install(settings: &Settings, name: &str) -> Result<Self> {
        let mut values = vec![
            // A test release leaves nothing behind.
            "crds.keep=false".to_owned(),
            format!("runtime.env.AWS_ENDPOINT_URL={}", settings.s3_endpoint),
            format!("runtime.env.AWS_REGION={}", settings.s3_region),
        ];
        for (key, image) in [("operator", &settings.operator_image), ("runtime", &settings.runtime_image)] {
            let (repository, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
            values.push(format!("{key}.image.repository={repository}"));
            values.push(format!("{key}.image.tag={tag}"));
        }
        let release = Self { name: name.to_owned(), values };
        release.helm("install", &["--create-namespace"]).await?;
        Ok(release)
    }

    /// `helm upgrade` with one more value.
    pub async fn upgrade(&self, value: &str) -> Result<()> {
        self.helm("upgrade", &["--set-string", value]).await
    }

    /// `helm uninstall`, which deletes the CustomResourceDefinition and with it every TorchModel too.
    pub async fn uninstall(&self) -> Result<()> {
        run("helm", &["uninstall", &self.name, "--namespace", &self.name, "--wait", "--timeout", "120s"], "").await?;
        Ok(())
    }

    /// Name of the namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.name
    }

    /// Name of the operator's Deployment.
    #[must_use]
    pub fn deployment(&self) -> String {
        format!("{}-torchmodel", self.name)
    }

    /// The operator's pod that is ready, once it is another than `old`, and that one has gone.
    pub async fn operator_pod(&self, client: &Client, old: &str) -> Result<String> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.name);
        let config = watcher::Config::default().labels("app.kubernetes.io/name=torchmodel-operator");
        let pod = eventually_any(&pods, config, "an operator is ready", |pod: &Pod| {
            let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
            pod.name_any() != old
                && conditions.clone().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        })
        .await?;
        if !old.is_empty() {
            gone(&pods, old).await?;
        }
        Ok(pod.name_any())
    }

    async fn helm(&self, command: &str, more: &[&str]) -> Result<()> {
        let mut arguments = vec![command, &self.name, CHART, "--namespace", &self.name, "--wait", "--timeout", "120s"];
        for value in &self.values {
            let flag = if value.ends_with("=false") { "--set" } else { "--set-string" };
            arguments.extend([flag, value]);
        }
        arguments.extend(more);
        run("helm", &arguments, "").await?;
        Ok(())
    }
}
