//! What a request's path means.
//!
//! Used by `rest` for every request, so without a table of patterns. Invariant: names are percent-decoded after the path is split, so
//! that an encoded slash splits nothing.

use percent_encoding::percent_decode_str;
use torchmodel_core::{
    inference::InferError,
    model_key::{ModelName, ModelVersion},
};

use super::{Routes, error::RestError};

/// A path that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'p> {
    Infer(ModelPath<'p>),
    Statistics(Option<ModelPath<'p>>),
    Configuration(ModelPath<'p>),
    RepositoryIndex,
    ModelReady(ModelPath<'p>),
    ModelMetadata(ModelPath<'p>),
    Models,
    ServerMetadata,
    Live,
    Ready,
    Metrics,
}

/// The part of a path that names a model, as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ModelPath<'p> {
    model: &'p str,
    version: Option<&'p str>,
}

impl<'p> Route<'p> {
    /// The route of `path` among `routes`, if there is one.
    pub(super) fn of(path: &'p str, routes: Routes) -> Option<Self> {
        match (path, routes) {
            ("/v2/health/live", _) => return Some(Self::Live),
            ("/v2/health/ready", _) => return Some(Self::Ready),
            ("/metrics", Routes::Admin) => return Some(Self::Metrics),
            (_, Routes::Admin) => return None,
            ("/v2" | "/v2/", Routes::Inference) => return Some(Self::ServerMetadata),
            ("/v2/models", Routes::Inference) => return Some(Self::Models),
            // As in Triton, before a model of that name.
            ("/v2/models/stats", Routes::Inference) => return Some(Self::Statistics(None)),
            ("/v2/repository/index", Routes::Inference) => return Some(Self::RepositoryIndex),
            _ => {}
        }
        let (model, rest) = next_segment(path.strip_prefix("/v2/models/")?)?;
        let (version, rest) = match rest.strip_prefix("versions/").and_then(next_segment) {
            Some((version, rest)) => (Some(version), rest),
            None => (None, rest),
        };
        let model = ModelPath { model, version };
        match rest {
            "infer" => Some(Self::Infer(model)),
            "ready" => Some(Self::ModelReady(model)),
            "stats" => Some(Self::Statistics(Some(model))),
            "config" => Some(Self::Configuration(model)),
            "" if !path.ends_with('/') => Some(Self::ModelMetadata(model)),
            _ => None,
        }
    }

    /// The method that it is for; GET includes HEAD.
    pub(super) const fn method(self) -> &'static str {
        match self {
            Self::Infer(_) | Self::RepositoryIndex => "POST",
            _ => "GET",
        }
    }
}

/// The first segment of a path, which is not empty, and what follows the slash behind it.
fn next_segment(path: &str) -> Option<(&str, &str)> {
    let (segment, rest) = path.split_once('/').unwrap_or((path, ""));
    (!segment.is_empty()).then_some((segment, rest))
}

/// The model that a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) model: ModelName,
    pub(super) version: Option<ModelVersion>,
}

impl Target {
    /// Takes the percent-decoded names from the path.
    pub(super) fn of(path: ModelPath<'_>) -> Result<Self, RestError> {
        let decode = |text| {
            let decoded = percent_decode_str(text).decode_utf8();
            decoded.map_err(|error| RestError::invalid(format!("failed to read the path: {error}")))
        };
        let version = match path.version {
            None => None,
            Some(version) => ModelVersion::parse_requested(&decode(version)?).map_err(InferError::from)?,
        };
        Ok(Self { model: decode(path.model)?.parse().map_err(InferError::from)?, version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_versions_are_found_in_the_path_and_decoded() {
        let of = |path| Route::of(path, Routes::Inference);
        let target = |route| match route {
            Some(Route::Infer(path) | Route::ModelReady(path) | Route::ModelMetadata(path)) => {
                Target::of(path).unwrap()
            }
            other => panic!("{other:?}"),
        };
        let named = |model: &str, version: Option<&str>| {
            let version = version.and_then(|version| ModelVersion::parse_requested(version).unwrap());
            Target { model: model.parse().unwrap(), version }
        };
        assert_eq!(target(of("/v2/models/a%3Ab%20%C3%BC/infer")), named("a:b ü", None));
        assert_eq!(target(of("/v2/models/m/versions/7/infer")), named("m", Some("7")));
        assert_eq!(target(of("/v2/models/m/versions/7")), named("m", Some("7")));
        assert_eq!(target(of("/v2/models/versions/ready")), named("versions", None));
        assert!(matches!(of("/v2/models/m/versions/7/ready"), Some(Route::ModelReady(_))));
        assert!(matches!(of("/v2/models/infer"), Some(Route::ModelMetadata(_))));
        assert!(matches!(of("/v2/models/m/versions/7/stats"), Some(Route::Statistics(Some(_)))));
        assert!(matches!(of("/v2/models/m/config"), Some(Route::Configuration(_))));
        assert_eq!(of("/v2/models/stats"), Some(Route::Statistics(None)));
        assert_eq!(of("/v2/repository/index"), Some(Route::RepositoryIndex));
        for path in [
            "/",
            "/v2/nope",
            "/v2/models/",
            "/v2/models/m/",
            "/v2/models/m/nope",
            "/v2/models//infer",
            "/v2/models/m/infer/",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
        for path in ["/v2/models/m/versions/", "/v2/models/m/versions//infer", "/v2/models/m/versions", "/metrics"] {
            assert_eq!(of(path), None, "{path}");
        }
        for path in ["/v2/models/%FF", "/v2/models/a%2Fb"] {
            let Some(Route::ModelMetadata(path)) = of(path) else { panic!("no model") };
            assert!(Target::of(path).is_err());
        }
    }

    #[test]
    fn the_admin_port_has_metrics_and_health_only() {
        assert_eq!(Route::of("/metrics", Routes::Admin), Some(Route::Metrics));
        assert_eq!(Route::of("/v2/health/ready", Routes::Admin), Some(Route::Ready));
        assert_eq!(Route::of("/v2", Routes::Admin), None);
        assert_eq!(Route::of("/v2/models/m/infer", Routes::Admin), None);
    }
}
