//! The `s3://` transport: `object_store`'s S3 client, signed with what `credentials` found.
//!
//! The client is given our own HTTP client, without retries, and answers other than success leave it as a typed
//! [`StatusFault`] in the source chain, so that nothing is guessed from error texts. Invariant: a source that needs credentials
//! from a service waits for that service no longer than the limit.

use std::{path::Path as FilePath, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use http::Method;
use http_body_util::BodyExt;
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore, RetryConfig, StaticCredentialProvider,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential},
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    },
    path::Path,
};
use torchmodel_crds::{S3Spec, redact_uri};
use tracing::info;
use url::Url;

use super::{
    credentials::{self, Credentials},
    environment::Environment,
    error::{ArtifactError, BoxError},
    fault::{self, MAX_BODY_BYTES, Meaning, StatusFault, Target},
    origin::{Answer, Ask, Body, Origin},
    uri::host_and_port,
};

const DEFAULT_REGION: &str = "us-east-1";

/// Variables that `object_store` itself reads for services that hand out credentials, and the requester-pays flag.
const PASSED_ON: [(&str, AmazonS3ConfigKey); 8] = [
    ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
    ("AWS_ENDPOINT_URL_STS", AmazonS3ConfigKey::StsEndpoint),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", AmazonS3ConfigKey::ContainerCredentialsRelativeUri),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", AmazonS3ConfigKey::ContainerCredentialsFullUri),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", AmazonS3ConfigKey::ContainerAuthorizationTokenFile),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT", AmazonS3ConfigKey::MetadataEndpoint),
    ("AWS_IMDSV1_FALLBACK", AmazonS3ConfigKey::ImdsV1Fallback),
    ("AWS_REQUEST_PAYER", AmazonS3ConfigKey::RequestPayer),
];

/// An object and the store that is asked for it.
pub(super) struct S3Origin {
    store: AmazonS3,
    key: Path,
    /// The source, literally: no two objects share their place in the cache.
    identity: String,
    target: Target,
    service: Option<CredentialService>,
}

/// What `S3Origin::new` needs besides the client.
pub(super) struct S3Source<'a> {
    /// Bucket.
    pub(super) bucket: &'a str,
    /// Key, literal.
    pub(super) key: &'a str,
    /// `source.s3`.
    pub(super) spec: Option<&'a S3Spec>,
    /// Folder of the mounted Secret.
    pub(super) secret: Option<&'a FilePath>,
    /// Environment variables.
    pub(super) environment: &'a Environment,
    /// How long a service that hands out credentials may take.
    pub(super) credentials_timeout: Duration,
}

/// A service that hands out credentials.
#[derive(Clone, Copy, Debug)]
struct CredentialService {
    name: &'static str,
    is_last_resort: bool,
    timeout: Duration,
}

/// Where requests go.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    /// What `object_store` is given: with the bucket in the host's name unless `is_path_style`.
    endpoint: Url,
    is_path_style: bool,
}

impl S3Origin {
    /// Prepares the store; reads the Secret and the AWS files, sends nothing.
    pub(super) fn new(client: reqwest::Client, source: &S3Source<'_>) -> Result<Self, ArtifactError> {
        let literal = format!("s3://{}/{}", source.bucket, source.key);
        let uri = redact_uri(&literal);
        let settings = credentials::resolve(source.environment, source.secret).map_err(|error| {
            ArtifactError::CredentialsMissing { uri: uri.clone(), searched: error.to_string(), source: None }
        })?;
        let spec = source.spec.cloned().unwrap_or_default();
        let region = spec.region.or(settings.region).unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let endpoint = spec.endpoint.or(settings.endpoint);
        let address = address(endpoint.as_deref(), spec.path_style, source.bucket, &region)?;
        let host = host_and_port(&address.endpoint);
        let is_signed = settings.credentials != Credentials::Anonymous;
        info!(endpoint = %host, region, credentials = ?settings.credentials, "reading {uri} from the S3 server {host}");

        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(source.bucket)
            .with_region(region)
            .with_endpoint(address.endpoint.as_str().trim_end_matches('/'))
            .with_virtual_hosted_style_request(!address.is_path_style)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_http_connector(Connector(Service {
                client,
                has_imdsv1_fallback: source.environment.is_true("AWS_IMDSV1_FALLBACK"),
            }));
        for (name, key) in PASSED_ON {
            if let Some(value) = source.environment.get(name) {
                builder = builder.with_config(key, value);
            }
        }
        let (builder, service) = with_credentials(builder, settings.credentials, source.credentials_timeout);
        let store = builder.build().map_err(|error| ArtifactError::Client { source: fault::network_cause(&error) })?;
        // What the library says of it quotes the key, of which a part may be a query that was not meant to be one.
        let key = Path::parse(source.key).map_err(|_| ArtifactError::SpecInvalid {
            field: "uri",
            problem: format!(
                "{uri:?} has a key that cannot be asked for: between its slashes must stand something other than nothing, \
                 '.' and '..', without control characters"
            ),
        })?;
        let identity = format!("{literal} at {host}");
        Ok(Self { store, key, identity, target: Target { uri, host, is_signed }, service })
    }

    fn explain(&self, ask: &Ask, error: &object_store::Error) -> Result<Answer, ArtifactError> {
        if let Some(fault) = fault::find_cause::<StatusFault>(error) {
            return match fault.meaning() {
                Meaning::NotModified => Ok(Answer::NotModified),
                Meaning::StartOver if ask.offset > 0 => Ok(Answer::StartOver),
                _ => Err(fault.explain(&self.target)),
            };
        }
        let is_of_network = fault::find_cause::<HttpError>(error).is_some();
        if ask.offset > 0 && !is_of_network {
            // The answer was read but does not fit the range asked for.
            return Ok(Answer::StartOver);
        }
        Err(fault::explain_network(&self.target, error))
    }

    async fn wait_for_credentials(&self, service: &CredentialService) -> Result<(), ArtifactError> {
        let uri = self.target.uri.clone();
        let source: BoxError =
            match tokio::time::timeout(service.timeout, self.store.credentials().get_credential()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error.into(),
                Err(_) => format!("no answer within {} s", service.timeout.as_secs_f32()).into(),
            };
        let host = service.name.to_owned();
        if service.is_last_resort {
            let searched = credentials::SEARCHED.to_owned();
            return Err(ArtifactError::CredentialsMissing {
                uri,
                searched,
                source: Some(fault::network_cause(source.as_ref())),
            });
        }
        let target = Target { uri, host, is_signed: true };
        Err(match fault::find_cause::<StatusFault>(source.as_ref()) {
            Some(fault) => fault.explain(&target),
            None => fault::explain_network(&target, source.as_ref()),
        })
    }
}

#[async_trait]
impl Origin for S3Origin {
    fn target(&self) -> &Target {
        &self.target
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    async fn open(&self, ask: &Ask) -> Result<Answer, ArtifactError> {
        if let Some(service) = &self.service {
            self.wait_for_credentials(service).await?;
        }
        let options = GetOptions {
            range: (ask.offset > 0).then_some(GetRange::Offset(ask.offset)),
            if_match: ask.etag.clone().filter(|_| ask.offset > 0),
            if_none_match: ask.known_etag.clone().filter(|_| ask.offset == 0),
            ..GetOptions::default()
        };
        match self.store.get_opts(&self.key, options).await {
            Ok(result) => Ok(Answer::Body(Body {
                offset: result.range.start,
                total: Some(result.meta.size),
                etag: result.meta.e_tag.clone(),
                stream: result.into_stream().map_err(BoxError::from).boxed(),
            })),
            Err(error) => self.explain(ask, &error),
        }
    }
}

fn with_credentials(
    builder: AmazonS3Builder,
    credentials: Credentials,
    timeout: Duration,
) -> (AmazonS3Builder, Option<CredentialService>) {
    let service = |name, is_last_resort| Some(CredentialService { name, is_last_resort, timeout });
    match credentials {
        Credentials::Anonymous => (builder.with_skip_signature(true), None),
        Credentials::Static(keys) => {
            let credential = AwsCredential { key_id: keys.id, secret_key: keys.secret, token: keys.token };
            (builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential))), None)
        }
        Credentials::WebIdentity { token_file, role_arn } => {
            let builder = builder
                .with_config(AmazonS3ConfigKey::WebIdentityTokenFile, token_file)
                .with_config(AmazonS3ConfigKey::RoleArn, role_arn);
            (builder, service("the AWS security token service", false))
        }
        Credentials::Container => (builder, service("the container credentials service", false)),
        Credentials::InstanceMetadata => (builder, service("the instance metadata service", true)),
    }
}

/// Where requests for a bucket go: with an endpoint the bucket stands in the path unless told otherwise; at AWS in the host's
/// name, unless a dot in it would spoil the certificate.
fn address(
    endpoint: Option<&str>,
    path_style: Option<bool>,
    bucket: &str,
    region: &str,
) -> Result<Address, ArtifactError> {
    let is_path_style = path_style.unwrap_or(endpoint.is_some() || bucket.contains('.'));
    let base = endpoint.map_or_else(|| format!("https://s3.{region}.amazonaws.com"), str::to_owned);
    let invalid = |problem: &str| ArtifactError::SpecInvalid {
        field: "s3.endpoint",
        problem: format!("{:?} {problem}", redact_uri(&base)),
    };
    let mut url = Url::parse(&base).map_err(|error| invalid(&format!("is not a URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid("must begin with http:// or https://"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("must have neither user nor query"));
    }
    let host = url.host_str().map(str::to_owned).ok_or_else(|| invalid("names no host"))?;
    if !is_path_style {
        url.set_host(Some(&format!("{bucket}.{host}")))
            .map_err(|error| invalid(&format!("cannot take the bucket {bucket:?} into its host's name: {error}")))?;
    }
    Ok(Address { endpoint: url, is_path_style })
}

/// Hands `object_store` our client, whatever options it would build one with.
#[derive(Debug)]
struct Connector(Service);

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

/// The client, with answers other than success turned into errors that carry a [`StatusFault`].
#[derive(Clone, Debug)]
struct Service {
    client: reqwest::Client,
    /// Whether `object_store` itself looks at a metadata service that denies a token, to go on without one.
    has_imdsv1_fallback: bool,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_token = request.method() == Method::PUT;
        let response = self.client.call(request).await?;
        if response.status().is_success() || (is_token && self.has_imdsv1_fallback) {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let fault = StatusFault::new(parts.status, &parts.headers, &read_some(body).await);
        Err(HttpError::new(HttpErrorKind::Unknown, fault))
    }
}

async fn read_some(mut body: HttpResponseBody) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(chunk) = frame.into_data() {
            bytes.extend_from_slice(chunk.get(..chunk.len().min(MAX_BODY_BYTES - bytes.len())).unwrap_or_default());
        }
        if bytes.len() >= MAX_BODY_BYTES {
            break;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_stands_in_the_path_with_an_endpoint_and_in_the_host_at_aws() {
        let table = [
            (None, None, "models", "https://models.s3.eu-west-1.amazonaws.com/", false),
            (None, None, "dotted.models", "https://s3.eu-west-1.amazonaws.com/", true),
            (None, Some(true), "models", "https://s3.eu-west-1.amazonaws.com/", true),
            (Some("http://s3.example:9000"), None, "models", "http://s3.example:9000/", true),
            (Some("https://s3.example"), Some(false), "models", "https://models.s3.example/", false),
        ];
        for (endpoint, path_style, bucket, expected, is_path_style) in table {
            let address = address(endpoint, path_style, bucket, "eu-west-1").unwrap();
            assert_eq!((address.endpoint.as_str(), address.is_path_style), (expected, is_path_style));
        }
    }

    #[test]
    fn an_endpoint_that_is_no_server_is_refused_without_its_secrets() {
        for endpoint in [
            "s3.example:9000/x",
            "ftp://s3.example",
            "https://",
            "http://u:hunter2@s3.example",
            "http://:hunter2@s3.example",
            "http://s3.example/?hunter2",
        ] {
            let message = address(Some(endpoint), None, "models", "x").unwrap_err().to_string();
            assert!(message.starts_with("source.s3.endpoint "), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        let message =
            address(Some("http://127.0.0.1:9000"), Some(false), "models", "x").map(|a| a.endpoint.to_string());
        assert!(message.is_err() || message.unwrap().contains("models.127.0.0.1"));
    }
}
