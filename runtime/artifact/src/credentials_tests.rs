//! Precedence and parsing of AWS credentials, on literal files and variables.

use super::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().copied().collect()
}

fn keys(id: &str) -> Credentials {
    Credentials::Static(Keys { id: id.into(), secret: format!("{id}-secret"), token: None })
}

/// A home folder with both AWS files.
fn home(credentials: &str, config: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
    std::fs::write(home.path().join(".aws/config"), config).unwrap();
    home
}

#[test]
fn a_file_in_the_aws_form_is_read_literally() {
    let text = "# a comment\n[default]\naws_access_key_id = A\naws_secret_access_key=a/b+c\\n\"=\n\n[profile \"two\"]\n\
                region = eu-west-1 # near\ns3 =\n  addressing_style = path\n\tregion = nested\noutput =\n";
    let parsed = parse_profiles(text).unwrap();
    assert_eq!(parsed.len(), 2);
    assert_eq!(parsed[0].0, "default");
    assert_eq!(parsed[0].1["aws_secret_access_key"], "a/b+c\\n\"=");
    assert_eq!(parsed[1].0, "profile two");
    assert_eq!(parsed[1].1["region"], "eu-west-1");
    assert!(!parsed[1].1.contains_key("addressing_style"));
}

#[test]
fn the_mounted_secret_wins_over_the_environment_and_that_over_the_files() {
    let home =
        home("[default]\naws_access_key_id=file\naws_secret_access_key=file-secret\n", "[default]\nregion=eu-west-1\n");
    let path = home.path().to_str().unwrap();
    let variables = [("HOME", path), ("AWS_ACCESS_KEY_ID", "env"), ("AWS_SECRET_ACCESS_KEY", "env-secret")];

    let files = resolve(&environment(&[("HOME", path)]), None).unwrap();
    assert_eq!(files.credentials, keys("file"));
    assert_eq!(files.region.as_deref(), Some("eu-west-1"));
    assert_eq!(resolve(&environment(&variables), None).unwrap().credentials, keys("env"));

    let secret = tempfile::tempdir().unwrap();
    std::fs::write(secret.path().join("AWS_ACCESS_KEY_ID"), "secret\n").unwrap();
    std::fs::write(secret.path().join("AWS_SECRET_ACCESS_KEY"), "secret-secret\n").unwrap();
    std::fs::write(secret.path().join("AWS_ENDPOINT_URL"), "http://s3.example\n").unwrap();
    let settings = resolve(&environment(&variables), Some(secret.path())).unwrap();
    assert_eq!(settings.credentials, keys("secret"));
    assert_eq!(settings.endpoint.as_deref(), Some("http://s3.example"));
}

#[test]
fn a_secret_may_hold_one_file_in_the_aws_form_and_without_keys_it_is_an_error() {
    let secret = tempfile::tempdir().unwrap();
    let variables = environment(&[("AWS_ACCESS_KEY_ID", "env"), ("AWS_SECRET_ACCESS_KEY", "env-secret")]);
    let message = resolve(&variables, Some(secret.path())).err().unwrap().to_string();
    assert!(message.contains("has neither AWS_ACCESS_KEY_ID nor a file \"credentials\""), "{message}");

    std::fs::write(
        secret.path().join("credentials"),
        "[default]\naws_access_key_id=f\naws_secret_access_key=f-secret\n",
    )
    .unwrap();
    assert_eq!(resolve(&variables, Some(secret.path())).unwrap().credentials, keys("f"));

    std::fs::write(secret.path().join("AWS_ACCESS_KEY_ID"), "half").unwrap();
    let message = resolve(&variables, Some(secret.path())).err().unwrap().to_string();
    assert!(message.ends_with("has AWS_ACCESS_KEY_ID but not AWS_SECRET_ACCESS_KEY"), "{message}");
}

#[test]
fn a_named_profile_is_taken_from_both_files() {
    let home = home(
        "[two]\naws_access_key_id=two\naws_secret_access_key=two-secret\n",
        "[profile two]\nregion=eu-west-2\nendpoint_url=http://s3.example\n[profile single]\nsso_session=corp\n",
    );
    let path = home.path().to_str().unwrap();
    let settings = resolve(&environment(&[("HOME", path), ("AWS_PROFILE", "two")]), None).unwrap();
    assert_eq!(settings.credentials, keys("two"));
    assert_eq!(settings.region.as_deref(), Some("eu-west-2"));
    assert_eq!(settings.endpoint.as_deref(), Some("http://s3.example"));

    let message =
        |profile| resolve(&environment(&[("HOME", path), ("AWS_PROFILE", profile)]), None).err().unwrap().to_string();
    assert_eq!(message("three"), "profile \"three\" is in none of the AWS files");
    assert_eq!(message("single"), "profile \"single\" uses sso_session, which this program does not support");
}

#[test]
fn without_keys_the_environment_decides_which_service_gives_them() {
    let table = [
        (vec![], Ok(Credentials::InstanceMetadata)),
        (vec![("AWS_SKIP_SIGNATURE", "true"), ("AWS_ACCESS_KEY_ID", "x")], Ok(Credentials::Anonymous)),
        (
            vec![("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"), ("AWS_ROLE_ARN", "arn:x")],
            Ok(Credentials::WebIdentity { token_file: "/token".into(), role_arn: "arn:x".into() }),
        ),
        (vec![("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2")], Ok(Credentials::Container)),
        (vec![("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")], Ok(Credentials::InstanceMetadata)),
        (vec![("AWS_EC2_METADATA_DISABLED", "true")], Err("turns instance metadata off")),
        (vec![("AWS_ACCESS_KEY_ID", "x")], Err("the environment has AWS_ACCESS_KEY_ID but not AWS_SECRET_ACCESS_KEY")),
    ];
    for (variables, expected) in table {
        match (resolve(&environment(&variables), None), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.credentials, expected, "{variables:?}"),
            (Err(found), Err(expected)) => assert!(found.to_string().ends_with(expected), "{found}"),
            (found, _) => panic!("{variables:?}: {:?}", found.map(|settings| settings.credentials)),
        }
    }
}

#[test]
fn neither_keys_nor_variables_can_be_printed() {
    let variables = environment(&[("AWS_ACCESS_KEY_ID", "hunter2"), ("AWS_SECRET_ACCESS_KEY", "hunter2")]);
    let settings = resolve(&variables, None).unwrap();
    assert!(!format!("{variables:?} {:?}", settings.credentials).contains("hunter2"));
}
