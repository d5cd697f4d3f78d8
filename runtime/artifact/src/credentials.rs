//! Which AWS credentials, region and endpoint apply, from a mounted Secret, the environment and the AWS files.
//!
//! Precedence of credentials: mounted Secret, environment variables, profile files, web identity, container, instance metadata.
//! A mounted Secret without usable keys is an error rather than a reason to look further. Invariant: nothing here prints a value.

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
};

use ini::{Ini, ParseOption};

use super::environment::Environment;

/// What requests are signed with.
#[derive(PartialEq, Eq)]
pub(super) enum Credentials {
    /// Requests are not signed: `AWS_SKIP_SIGNATURE=true`.
    Anonymous,
    /// Keys that were found.
    Static(Keys),
    /// A token file and a role, exchanged at AWS's token service.
    WebIdentity {
        /// `AWS_WEB_IDENTITY_TOKEN_FILE`.
        token_file: String,
        /// `AWS_ROLE_ARN`.
        role_arn: String,
    },
    /// An HTTP endpoint that the container's host offers.
    Container,
    /// The instance metadata service, the last resort.
    InstanceMetadata,
}

/// An access key.
#[derive(PartialEq, Eq)]
pub(super) struct Keys {
    /// Its identifier.
    pub(super) id: String,
    /// Its secret.
    pub(super) secret: String,
    /// The session's token, with temporary keys.
    pub(super) token: Option<String>,
}

/// Everything about AWS that does not stand in the source itself.
pub(super) struct AwsSettings {
    /// What requests are signed with.
    pub(super) credentials: Credentials,
    /// Region, if any place names one.
    pub(super) region: Option<String>,
    /// Endpoint, if any place names one.
    pub(super) endpoint: Option<String>,
}

/// Why no credentials could be chosen.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct CredentialsError(String);

/// Places that were searched when only the instance metadata service is left, for messages.
pub(super) const SEARCHED: &str = "AWS_ACCESS_KEY_ID is not set, no profile in the AWS files has keys, there is no web identity \
     and no container credentials, and the instance metadata service gave none";

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Static(_) => "Static",
            Self::WebIdentity { .. } => "WebIdentity",
            Self::Container => "Container",
            Self::InstanceMetadata => "InstanceMetadata",
        })
    }
}

/// Chooses credentials, region and endpoint. Reads the Secret's folder and the AWS files.
pub(super) fn resolve(environment: &Environment, secret: Option<&Path>) -> Result<AwsSettings, CredentialsError> {
    if let Some(dir) = secret {
        return resolve_secret(environment, dir);
    }
    let profile = Profile::read(environment)?;
    let region = ["AWS_REGION", "AWS_DEFAULT_REGION"]
        .iter()
        .find_map(|name| environment.get(name))
        .or_else(|| profile.get("region"))
        .map(str::to_owned);
    let endpoint = endpoint(&|name| environment.get(name)).or_else(|| profile.get("endpoint_url").map(str::to_owned));
    Ok(AwsSettings { credentials: choose(environment, &profile)?, region, endpoint })
}

fn endpoint<'a>(get: &dyn Fn(&str) -> Option<&'a str>) -> Option<String> {
    ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].iter().find_map(|name| get(name)).map(str::to_owned)
}

fn choose(environment: &Environment, profile: &Profile) -> Result<Credentials, CredentialsError> {
    if environment.is_true("AWS_SKIP_SIGNATURE") {
        return Ok(Credentials::Anonymous);
    }
    if let Some(keys) = Keys::from_variables("the environment", &|name| environment.get(name))? {
        return Ok(Credentials::Static(keys));
    }
    if let Some(keys) = profile.keys()? {
        return Ok(Credentials::Static(keys));
    }
    let web_identity = |token_file: Option<&str>, role_arn: Option<&str>| {
        Some(Credentials::WebIdentity { token_file: token_file?.to_owned(), role_arn: role_arn?.to_owned() })
    };
    let from_environment =
        web_identity(environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"), environment.get("AWS_ROLE_ARN"));
    if let Some(found) =
        from_environment.or_else(|| web_identity(profile.get("web_identity_token_file"), profile.get("role_arn")))
    {
        return Ok(found);
    }
    profile.refuse_what_is_not_supported()?;
    if environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_some()
        || environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI").is_some()
            && environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").is_some()
    {
        return Ok(Credentials::Container);
    }
    if environment.is_true("AWS_EC2_METADATA_DISABLED") {
        let text = "AWS_ACCESS_KEY_ID is not set, no profile in the AWS files has keys, there is no web identity and no \
                    container credentials, and AWS_EC2_METADATA_DISABLED turns instance metadata off";
        return Err(CredentialsError(text.to_owned()));
    }
    Ok(Credentials::InstanceMetadata)
}

fn resolve_secret(environment: &Environment, dir: &Path) -> Result<AwsSettings, CredentialsError> {
    let read = |name: &str| -> Result<Option<String>, CredentialsError> {
        let text = read_optional(&dir.join(name))?;
        Ok(text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
    };
    let mut values = HashMap::new();
    for name in [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    ] {
        if let Some(value) = read(name)? {
            values.insert(name, value);
        }
    }
    let get = |name: &str| values.get(name).map(String::as_str);
    let place = format!("the Secret at {}", dir.display());
    let mut profile = Profile::named(environment);
    let file = dir.join("credentials");
    profile.merge(&file, &[profile.name.clone()])?;
    let keys = match Keys::from_variables(&place, &get)? {
        Some(keys) => keys,
        None => profile.keys()?.ok_or_else(|| {
            CredentialsError(format!(
                "{place} has neither AWS_ACCESS_KEY_ID nor a file \"credentials\" with keys for profile {:?}",
                profile.name
            ))
        })?,
    };
    let either = |name: &str| get(name).or_else(|| environment.get(name));
    let region = get("AWS_REGION")
        .or_else(|| get("AWS_DEFAULT_REGION"))
        .or_else(|| profile.get("region"))
        .or_else(|| either("AWS_REGION"))
        .or_else(|| either("AWS_DEFAULT_REGION"))
        .map(str::to_owned);
    let endpoint = endpoint(&get).or_else(|| endpoint(&|name| environment.get(name)));
    Ok(AwsSettings { credentials: Credentials::Static(keys), region, endpoint })
}

impl Keys {
    fn from_variables<'a>(
        place: &str,
        get: &dyn Fn(&str) -> Option<&'a str>,
    ) -> Result<Option<Self>, CredentialsError> {
        Self::pair(place, get, ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
    }

    fn pair<'a>(
        place: &str,
        get: &dyn Fn(&str) -> Option<&'a str>,
        [id, secret, token]: [&str; 3],
    ) -> Result<Option<Self>, CredentialsError> {
        match (get(id), get(secret)) {
            (Some(id), Some(secret)) => {
                Ok(Some(Self { id: id.to_owned(), secret: secret.to_owned(), token: get(token).map(str::to_owned) }))
            }
            (None, None) => Ok(None),
            (Some(_), None) => Err(CredentialsError(format!("{place} has {id} but not {secret}"))),
            (None, Some(_)) => Err(CredentialsError(format!("{place} has {secret} but not {id}"))),
        }
    }
}

/// One profile of the AWS files: what `credentials` says wins over what `config` says.
struct Profile {
    name: String,
    is_named: bool,
    is_found: bool,
    values: HashMap<String, String>,
}

impl Profile {
    fn named(environment: &Environment) -> Self {
        let name = environment.get("AWS_PROFILE").or_else(|| environment.get("AWS_DEFAULT_PROFILE"));
        Self {
            name: name.unwrap_or("default").to_owned(),
            is_named: name.is_some(),
            is_found: false,
            values: HashMap::new(),
        }
    }

    fn read(environment: &Environment) -> Result<Self, CredentialsError> {
        let home = environment.get("HOME").map(|home| PathBuf::from(home).join(".aws"));
        let path = |variable: &str, file: &str| {
            environment.get(variable).map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join(file)))
        };
        let mut profile = Self::named(environment);
        let name = profile.name.clone();
        if let Some(file) = path("AWS_SHARED_CREDENTIALS_FILE", "credentials") {
            profile.merge(&file, std::slice::from_ref(&name))?;
        }
        if let Some(file) = path("AWS_CONFIG_FILE", "config") {
            let sections = if name == "default" {
                vec![name, "profile default".to_owned()]
            } else {
                vec![format!("profile {name}")]
            };
            profile.merge(&file, &sections)?;
        }
        if profile.is_named && !profile.is_found && environment.get("AWS_ACCESS_KEY_ID").is_none() {
            return Err(CredentialsError(format!("profile {:?} is in none of the AWS files", profile.name)));
        }
        Ok(profile)
    }

    /// Adds the values of the named sections of a file that are not known yet; a file that is absent has none.
    fn merge(&mut self, file: &Path, sections: &[String]) -> Result<(), CredentialsError> {
        let Some(text) = read_optional(file)? else { return Ok(()) };
        for (section, values) in parse_profiles(&text)
            .map_err(|line| CredentialsError(format!("line {line} of {} is not in the AWS form", file.display())))?
        {
            if sections.contains(&section) {
                self.is_found = true;
                for (key, value) in values {
                    self.values.entry(key).or_insert(value);
                }
            }
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn keys(&self) -> Result<Option<Keys>, CredentialsError> {
        let place = format!("profile {:?} of the AWS files", self.name);
        Keys::pair(&place, &|name| self.get(name), ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"])
    }

    fn refuse_what_is_not_supported(&self) -> Result<(), CredentialsError> {
        for key in ["sso_session", "sso_start_url", "credential_process", "source_profile", "credential_source"] {
            if self.is_named && self.get(key).is_some() {
                let name = &self.name;
                return Err(CredentialsError(format!(
                    "profile {name:?} uses {key}, which this program does not support"
                )));
            }
        }
        Ok(())
    }
}

/// A section's name and its values.
type Section = (String, HashMap<String, String>);

/// Sections and their values of a file in the form of `~/.aws/credentials`, or the number of the line that is not in it.
///
/// Values are literal: neither quotes nor backslashes mean anything; ` #` begins a comment; an indented line belongs to a nested
/// setting and is left out, as nothing here reads one.
fn parse_profiles(text: &str) -> Result<Vec<Section>, usize> {
    let top_level: Vec<&str> = text.lines().map(|line| if line.starts_with([' ', '\t']) { "" } else { line }).collect();
    let options = ParseOption { enabled_quote: false, enabled_escape: false, ..ParseOption::default() };
    let ini = Ini::load_from_str_opt(&top_level.join("\n"), options).map_err(|error| error.line)?;
    let sections = ini.iter().filter_map(|(name, properties)| {
        let name = name?.trim().replace('"', "");
        let values = properties.iter().map(|(key, value)| {
            let value = value.split(" #").next().unwrap_or(value).split(" ;").next().unwrap_or(value);
            (key.trim().to_ascii_lowercase(), value.trim().to_owned())
        });
        Some((name, values.collect()))
    });
    Ok(sections.collect())
}

fn read_optional(path: &Path) -> Result<Option<String>, CredentialsError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(CredentialsError(format!("could not read {}: {error}", path.display()))),
    }
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
