//! Reads a request's body into the request: admitted, decompressed, within the limits.
//!
//! Called by `rest::infer`. Invariants: a body of known length is reserved before any of it is read, any other as it comes, and what
//! decompression makes of it likewise; what takes long is done on a thread that may block; no body waits for ever for its client.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::time::{Instant, timeout_at};
use torchmodel_core::metadata::ModelMetadata;

use super::{
    assembly::Assembly,
    decode::{Decoded, Head},
    error::RestError,
    inflate::{Inflation, encoding_of},
};
use crate::{
    admission::{Admission, AdmissionError, ProgressTimer},
    blocking::off_thread,
    protocol::Limits,
};

/// How long the body of a refused request may pause before it is given up, and how long it may take.
const DISCARD_PAUSE: Duration = Duration::from_secs(2);
const DISCARD_TIMEOUT: Duration = Duration::from_secs(30);

/// JSON below this is read where it is; more on a thread that may block, so that other requests go on.
pub(super) const INLINE_BYTES: usize = 64 << 10;

/// A request's body: hyper's or HTTP/2's.
pub(crate) trait RequestBody: Body<Data = Bytes, Error: Into<BoxError> + Send> + Unpin + Send {}

impl<B: Body<Data = Bytes, Error: Into<BoxError> + Send> + Unpin + Send> RequestBody for B {}

type BoxError = Box<dyn Error + Send + Sync>;

/// A request as its head left it.
pub(super) struct Incoming<'a, B> {
    pub(super) head: Head,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: B,
    /// For a body that is nothing but the model's one input.
    pub(super) metadata: Option<ModelMetadata>,
}

/// Reads the whole request. The body of one that is refused is taken in and forgotten.
pub(super) async fn read<B: RequestBody>(
    mut incoming: Incoming<'_, B>,
    admission: &Admission,
    limits: Limits,
) -> Result<Decoded, RestError> {
    let decoded = match begin(&mut incoming, admission, limits) {
        Ok(reading) => reading.run(&mut incoming.body).await,
        Err(error) => Err(error),
    };
    if decoded.as_ref().is_err_and(RestError::may_leave_body) {
        discard(incoming.headers, incoming.body, limits.max_request_bytes).await;
    }
    decoded
}

/// Takes in and forgets what a client still sends of a refused request, up to `limit` bytes: an answer before the end of the
/// body would be lost to many clients, whose connection is reset while they send. A client that waits for `100 Continue` is not
/// told to go on.
pub(super) async fn discard(headers: &HeaderMap, mut body: impl RequestBody, limit: usize) {
    if headers.contains_key(header::EXPECT) || body.is_end_stream() {
        return;
    }
    let mut left = limit;
    let end = Instant::now() + DISCARD_TIMEOUT;
    loop {
        let pause = end.min(Instant::now() + DISCARD_PAUSE);
        let Ok(Some(Ok(frame))) = timeout_at(pause, body.frame()).await else { return };
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// A body that is being read.
struct Reading {
    to: To,
    /// Bytes that may still come.
    left: usize,
    limit: usize,
}

/// Where the bytes of a body go.
enum To {
    Assembly(Box<Assembly>),
    Inflation(Inflation),
}

fn begin<B: RequestBody>(
    incoming: &mut Incoming<'_, B>,
    admission: &Admission,
    limits: Limits,
) -> Result<Reading, RestError> {
    let encoding = encoding_of(incoming.headers)?;
    let limit = limits.max_request_bytes;
    let announced = incoming.body.size_hint().exact().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > limit) {
        return Err(RestError::TooLarge(limit));
    }
    let length = announced.filter(|_| encoding.is_none());
    let reservation = admission.reserve(length.unwrap_or(0))?;
    let mut assembly = Assembly::new(incoming.head.clone(), limits, length, reservation)?;
    if let Some(metadata) = incoming.metadata.take() {
        assembly = assembly.raw(metadata)?;
    }
    let to = match encoding {
        None => To::Assembly(Box::new(assembly)),
        Some(encoding) => To::Inflation(Inflation::new(encoding, assembly, admission, limit)?),
    };
    Ok(Reading { to, left: limit, limit })
}

impl Reading {
    async fn run(mut self, body: &mut impl RequestBody) -> Result<Decoded, RestError> {
        let mut timer = ProgressTimer::default();
        while let Some(frame) = timer.within(body.frame()).await? {
            let frame = frame.map_err(broken)?;
            let Ok(data) = frame.into_data() else { continue };
            self.left = self.left.checked_sub(data.len()).ok_or(RestError::TooLarge(self.limit))?;
            self.to = match self.to {
                To::Assembly(assembly) => To::Assembly(take(assembly, data).await?),
                To::Inflation(inflation) => To::Inflation(inflate(inflation, data).await?),
            };
        }
        let mut assembly = match self.to {
            To::Assembly(assembly) => assembly,
            To::Inflation(inflation) => Box::new(inflation.finish()?),
        };
        if assembly.is_all_json() {
            assembly = read_json(assembly).await?;
        }
        assembly.finish()
    }
}

/// Why a body ended early: it was too slow for HTTP/2's own watch, or the connection broke.
fn broken(error: impl Into<BoxError>) -> RestError {
    match error.into().downcast::<AdmissionError>() {
        Ok(error) => (*error).into(),
        Err(error) => RestError::invalid(format!("failed to read the request body: {error}")),
    }
}

async fn take(mut assembly: Box<Assembly>, mut data: Bytes) -> Result<Box<Assembly>, RestError> {
    while !data.is_empty() {
        assembly.take(&mut data)?;
        if assembly.is_json_complete() {
            assembly = read_json(assembly).await?;
        }
    }
    Ok(assembly)
}

async fn inflate(mut inflation: Inflation, data: Bytes) -> Result<Inflation, RestError> {
    here_or_off_thread(inflation.takes_long(&data), move || {
        inflation.take(&data)?;
        Ok(inflation)
    })
    .await
}

async fn read_json(mut assembly: Box<Assembly>) -> Result<Box<Assembly>, RestError> {
    here_or_off_thread(assembly.json_bytes() > INLINE_BYTES, move || {
        assembly.read_json()?;
        Ok(assembly)
    })
    .await
}

/// Does `work` here or, when it takes long, on a thread that may block.
pub(super) async fn here_or_off_thread<T: Send + 'static>(
    takes_long: bool,
    work: impl FnOnce() -> Result<T, RestError> + Send + 'static,
) -> Result<T, RestError> {
    if takes_long { off_thread(work).await? } else { work() }
}

#[cfg(test)]
mod tests;
