//! `ModelInfer`, served beside tonic's router: receive, decode, ask the service, answer, count.
//!
//! Called by the connection for each such call. Invariants: payload bytes are copied once on the way in and not at all on the way
//! out; every call is counted once, also when its client leaves; a client's fault is never INTERNAL or UNKNOWN.

use std::{collections::VecDeque, future::poll_fn, task::Poll, time::Instant};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use prost::Message as _;
use tonic::Status;
use torchmodel_core::{
    inference::{InferError, InferRequest},
    metrics::{Metrics, Protocol},
    model_key::ModelName,
    outcome::Outcome,
    service::InferenceService,
};

use super::{
    bounds,
    decode::{self, Decoding},
    encode,
    encoding::{ACCEPTED, encoding_for_answer, encoding_of, timeout_of},
    message::{Message, MessageReader},
    proto::ModelInferRequest,
    status::status_of,
    walker::{WalkError, Walked},
};
use crate::{
    admission::{Admission, AdmissionError, Direction, ProgressTimer, Reservation},
    blocking::off_thread,
    compression::{Compressor, Encoding, MIN_BYTES},
    http2::{
        answer::{Answer, Unsent, send_bytes, send_whole},
        window::{Expected, Window},
    },
    protocol::{Limits, deadline_after},
    request_count::RequestCount,
};

/// The path of the call.
pub(super) const PATH: &str = "/inference.GRPCInferenceService/ModelInfer";

/// Fields other than raw tensors beyond this are decoded on a thread that may block, so that other calls go on.
const INLINE_BYTES: usize = 256 << 10;

const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Answers the calls.
pub(super) struct Infer {
    pub(super) service: InferenceService,
    pub(super) metrics: Metrics,
    pub(super) limits: Limits,
    pub(super) admission: Admission,
    pub(super) compressor: Compressor,
}

/// Why a call is not answered with outputs, and the metrics' word for it.
pub(super) struct Refusal {
    pub(super) status: Status,
    outcome: Outcome,
}

impl From<InferError> for Refusal {
    fn from(error: InferError) -> Self {
        Self { outcome: error.outcome(), status: status_of(&error) }
    }
}

impl From<WalkError> for Refusal {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Invalid(text) => InferError::InvalidRequest(text).into(),
            WalkError::TooLarge(text) => {
                Self { status: Status::resource_exhausted(text), outcome: Outcome::InvalidRequest }
            }
            WalkError::Admission(error) => error.into(),
        }
    }
}

impl From<AdmissionError> for Refusal {
    fn from(error: AdmissionError) -> Self {
        let outcome = match error {
            AdmissionError::Full { .. } => Outcome::Overloaded,
            // The client stopped sending.
            AdmissionError::Timeout => Outcome::Canceled,
        };
        Self { outcome, status: status_of(&error.into()) }
    }
}

/// The answer to a call: pieces that are sent as they are.
struct Outputs {
    pieces: VecDeque<Bytes>,
    encoding: Option<Encoding>,
    /// What is reserved for the pieces, where they do not hold it themselves.
    reservation: Option<Reservation>,
}

/// What a call's headers say.
struct CallHead {
    arrival: Instant,
    deadline: Option<Instant>,
    encoding: Option<Encoding>,
    answer_encoding: Option<Encoding>,
}

impl CallHead {
    /// Reads the headers, or gives the response to a request that is no call.
    fn read(parts: &Parts) -> Result<Self, Box<Response<Bytes>>> {
        let arrival = Instant::now();
        let plain = |status: StatusCode, name: HeaderName, value: &'static str| {
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = status;
            response.headers_mut().insert(name, HeaderValue::from_static(value));
            Box::new(response)
        };
        if parts.method != Method::POST {
            return Err(plain(StatusCode::METHOD_NOT_ALLOWED, header::ALLOW, "POST"));
        }
        let content_type = parts.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let is_grpc = content_type
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+proto") || rest.starts_with(b";"));
        if !is_grpc {
            return Err(plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, header::ACCEPT, "application/grpc"));
        }
        let encoding = encoding_of(&parts.headers).map_err(|name| {
            let text = format!("grpc-encoding '{name}' is not supported, use one of {ACCEPTED}");
            let mut response = Status::unimplemented(text).into_http::<Bytes>();
            response.headers_mut().insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static(ACCEPTED));
            Box::new(response)
        })?;
        let deadline = timeout_of(&parts.headers).and_then(|timeout| deadline_after(arrival, timeout));
        let answer_encoding = encoding_for_answer(encoding, &parts.headers);
        Ok(Self { arrival, deadline, encoding, answer_encoding })
    }
}

impl Infer {
    /// Answers one call.
    pub(super) async fn call(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Answer>,
        window: Window,
    ) -> Option<Unsent> {
        let (parts, stream) = request.into_parts();
        let mut count = RequestCount::new(&self.metrics, Protocol::Grpc);
        let head = match CallHead::read(&parts) {
            Ok(head) => head,
            Err(response) => {
                count.outcome = Outcome::InvalidRequest;
                return send_bytes(&mut respond, *response);
            }
        };
        // A head may be large, and waits for nothing.
        drop(parts);
        let result = {
            let mut answer = std::pin::pin!(self.answer(stream, head, window, &mut count));
            let result = poll_fn(|context| {
                if respond.poll_reset(context).is_ready() {
                    return Poll::Ready(None);
                }
                answer.as_mut().poll(context).map(Some)
            });
            result.await?
        };
        match result {
            Ok(Outputs { pieces, encoding, reservation }) => {
                count.outcome = Outcome::Ok;
                let timer = self.metrics.send_timer(Protocol::Grpc);
                let answer = Answer::new(pieces, reservation).timed(Some(timer));
                send_outputs(&mut respond, answer, encoding)
            }
            Err(refusal) => {
                count.outcome = refusal.outcome;
                send_bytes(&mut respond, refusal.status.into_http())
            }
        }
    }

    async fn answer(
        &self,
        stream: RecvStream,
        head: CallHead,
        window: Window,
        count: &mut RequestCount<'_>,
    ) -> Result<Outputs, Refusal> {
        let reader = MessageReader::new(self.admission.clone(), self.limits.max_request_bytes, head.encoding);
        let message = receive(stream, reader, &window).await?;
        count.received();
        let walked = match message {
            Message::Plain(walked) => walked,
            Message::Compressed(compressed) => off_thread(move || compressed.inflate()).await??,
        };
        self.admission.count_copy(Protocol::Grpc, Direction::In, walked.copied);
        let (arrival, deadline, limits) = (head.arrival, head.deadline, self.limits);
        let is_large = walked.rest.len() > INLINE_BYTES;
        let decode = move || decode(walked, &Decoding { arrival, deadline, limits });
        let (named, request) = if is_large { off_thread(decode).await? } else { decode() };
        count.model = named;
        let request = request?;
        let mut reservation = self.admission.reserve_beside(request.size_bytes());
        let encoded = encode::encode(self.service.infer(request).await?)?;
        let bytes = encoded.bytes();
        reservation.grow_within(bytes)?;
        let Some(encoding) = head.answer_encoding.filter(|_| bytes >= MIN_BYTES) else {
            return Ok(Outputs { pieces: encoded.into_pieces(), encoding: None, reservation: Some(reservation) });
        };
        // Both are there while one is made of the other.
        let mut compressed = self.admission.reserve_beside(bytes);
        compressed.grow_within(bytes)?;
        let compressed = self.compressor.run(compressed, move || encoded.compress(encoding)).await?;
        Ok(Outputs { pieces: [compressed].into(), encoding: Some(encoding), reservation: None })
    }
}

/// Decodes what was received. Gives the model's name also where the rest is wrong.
pub(super) fn decode(walked: Walked, decoding: &Decoding) -> (Option<ModelName>, Result<InferRequest, InferError>) {
    let Walked { raw, rest, mut reservation, .. } = walked;
    let invalid = |text: String| (None, Err(InferError::InvalidRequest(text)));
    // What prost makes of typed contents, and the tensors made of that.
    let decoded_bytes = match bounds::measure(&rest) {
        Ok(bytes) => bytes,
        Err(text) => return invalid(text),
    };
    if let Err(error) = reservation.grow_within(decoded_bytes.saturating_mul(2)) {
        return (None, Err(error.into()));
    }
    // `bytes` fields are slices of what was received.
    match ModelInferRequest::decode(Bytes::from(rest)) {
        Ok(mut message) => {
            message.raw_input_contents = raw;
            (message.model_name.parse().ok(), decode::decode(message, decoding, &mut reservation))
        }
        Err(error) => invalid(format!("failed to parse the request: {error}")),
    }
}

/// Receives the message of a call to its end.
async fn receive(mut stream: RecvStream, mut reader: MessageReader, window: &Window) -> Result<Message, Refusal> {
    let mut timer = None::<ProgressTimer>;
    let mut expected = None::<Expected>;
    loop {
        let data = poll_fn(|context| match stream.poll_data(context) {
            Poll::Ready(data) => Poll::Ready(Ok(data)),
            Poll::Pending => {
                let expired = timer.get_or_insert_default().poll_expired(context);
                expired.map(|()| Err(AdmissionError::Timeout))
            }
        });
        let Some(data) = data.await? else { break };
        let data = data.map_err(|error| Refusal {
            status: Status::cancelled(format!("the call ended early: {error}")),
            outcome: Outcome::Canceled,
        })?;
        reader.push(&data)?;
        drop(stream.flow_control().release_capacity(data.len()));
        match (&mut expected, reader.missing()) {
            (Some(expected), _) => expected.received(data.len()),
            (None, Some(missing)) if missing > 0 => expected = Some(window.expect(missing)),
            (None, _) => {}
        }
        if let Some(timer) = &mut timer {
            timer.progressed();
        }
    }
    Ok(reader.finish()?)
}

fn send_outputs(respond: &mut SendResponse<Answer>, answer: Answer, encoding: Option<Encoding>) -> Option<Unsent> {
    let mut head = Response::new(());
    let headers = head.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Some(encoding) = encoding {
        headers.insert(GRPC_ENCODING, HeaderValue::from_static(encoding.as_str()));
    }
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    send_whole(respond, head, answer, Some(trailers))
}

/// The answer to a call for which there is no memory.
pub(super) fn refuse(error: AdmissionError) -> Response<Bytes> {
    Refusal::from(error).status.into_http()
}

/// The error of a router's body that is too slow: tonic looks for a status in it.
pub(super) fn refuse_body(error: AdmissionError) -> axum::BoxError {
    Box::new(Refusal::from(error).status)
}

/// Whether a path is the call's.
pub(super) fn is_infer(path: &str) -> bool {
    path == PATH
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn parts(method: Method, headers: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::new(());
        *request.method_mut() = method;
        for (name, value) in headers {
            request.headers_mut().insert(HeaderName::from_static(name), value.parse().unwrap());
        }
        request.into_parts().0
    }

    fn refused(method: Method, headers: &[(&'static str, &str)]) -> Response<Bytes> {
        *CallHead::read(&parts(method, headers)).err().unwrap()
    }

    #[test]
    fn what_is_no_call_is_told_so_by_http() {
        assert_eq!(refused(Method::GET, &[("content-type", "application/grpc")]).status(), 405);
        for wrong in ["application/json", "application/grpc-web", "text/plain", ""] {
            assert_eq!(refused(Method::POST, &[("content-type", wrong)]).status(), 415, "{wrong}");
        }
        assert_eq!(refused(Method::POST, &[]).status(), 415);
        for right in ["application/grpc", "application/grpc+proto", "application/grpc;v=1"] {
            assert!(CallHead::read(&parts(Method::POST, &[("content-type", right)])).is_ok(), "{right}");
        }
    }

    #[test]
    fn an_unknown_compression_is_unimplemented_and_the_known_ones_are_named() {
        let headers = [("content-type", "application/grpc"), ("grpc-encoding", "snappy")];
        let response = refused(Method::POST, &headers);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "12");
        assert_eq!(response.headers()["grpc-accept-encoding"], "identity,gzip,deflate");
    }

    #[test]
    fn every_refusal_has_its_code_and_its_word_in_the_metrics() {
        let table: [(Refusal, Code, Outcome); 5] = [
            (WalkError::Invalid("x".into()).into(), Code::InvalidArgument, Outcome::InvalidRequest),
            (WalkError::TooLarge("x".into()).into(), Code::ResourceExhausted, Outcome::InvalidRequest),
            (AdmissionError::Full { held: 1, maximum: 2 }.into(), Code::Unavailable, Outcome::Overloaded),
            (AdmissionError::Timeout.into(), Code::DeadlineExceeded, Outcome::Canceled),
            (InferError::NotFound("x".into()).into(), Code::NotFound, Outcome::NotFound),
        ];
        for (refusal, code, outcome) in table {
            assert_eq!((refusal.status.code(), refusal.outcome), (code, outcome));
        }
    }
}
