//! Identity of the pods when the manifest names none: without any permission, and without a token in the pod.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::metadata;
use crate::controller::validate::ValidatedModel;

/// A ServiceAccount of the model's name.
pub fn build_service_account(model: &ValidatedModel) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(model, &model.name),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
