//! How much memory requests may take together: what the flags say, or a part of the container's limit.
//!
//! Called by `serve`. Invariant: the largest request fits.

use torchmodel_crds::Failure;
use torchmodel_server::admission::Admission;

use crate::{args::ServeArguments, machine, misused};

/// How many of the largest requests are taken at one time.
const DEFAULT_INFLIGHT_REQUESTS: usize = 4;
/// The part of a container's memory that requests may take: one in so many.
const DEFAULT_MEMORY_PART: usize = 4;

/// The bound on all requests, which must leave room for the largest.
pub fn admission(arguments: &ServeArguments) -> Result<Admission, Failure> {
    let largest = arguments.max_request_bytes;
    let by_default = || {
        let most = largest.saturating_mul(DEFAULT_INFLIGHT_REQUESTS);
        machine::memory_limit().map_or(most, |limit| most.min(limit / DEFAULT_MEMORY_PART)).max(largest)
    };
    let most = arguments.max_inflight_bytes.unwrap_or_else(by_default);
    if most < largest {
        return Err(misused(format!(
            "--max-inflight-bytes is {most}: it must be at least --max-request-bytes, which is {largest}"
        )));
    }
    Ok(Admission::new(most))
}
