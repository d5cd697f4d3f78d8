//! What the API server itself accepts and refuses.

use serde::Deserialize;
use serde_json::Value;

use super::user;

#[derive(Deserialize)]
struct Row {
    case: String,
    name: String,
    spec: Value,
    refused: Option<String>,
}

#[tokio::test]
async fn every_manifest_is_accepted_or_refused_with_its_sentence() {
    let user = user("manifests").await;
    let cases: Vec<Row> = serde_yaml::from_str(include_str!("../../../../crds/tests/manifests.yaml")).unwrap();
    for Row { case, name, spec, refused } in cases {
        let result = user.apply(&name, spec).await;
        match (refused, result) {
            (None, Ok(_)) => {}
            (None, Err(error)) => panic!("{case}: refused: {error}"),
            (Some(_), Ok(_)) => panic!("{case}: accepted"),
            (Some(sentence), Err(kube::Error::Api(status))) => {
                assert!(status.message.contains(&sentence), "{case}: {}", status.message);
            }
            (Some(_), Err(error)) => panic!("{case}: {error}"),
        }
    }
}
