//! `POST /v2/models/{model}[/versions/{version}]/infer`: read, decode, ask the service, encode, answer, count.
//!
//! The handler of `rest`'s one route that carries tensors. Invariant: every request that reaches it is counted once, also when
//! the client leaves before the answer.

use http::{HeaderValue, Request, Response, header};
use torchmodel_core::{inference::InferResponse, metrics::Protocol, outcome::Outcome};

use super::{
    App, Target,
    answer::{Answer, AnswerBody},
    body::{self, INLINE_BYTES, Incoming, RequestBody, here_or_off_thread},
    decode::{Decoded, HEADER_LENGTH, Head, OutputForm},
    encode::{encode, text_bound},
    error::RestError,
};
use crate::{admission::Reservation, request_count::RequestCount};

/// Handles one inference request.
pub(super) async fn infer<B: RequestBody>(app: &App, target: Result<Target, RestError>, request: Request<B>) -> Answer {
    let mut count = RequestCount::new(&app.metrics, Protocol::Rest);
    match answer(app, target, request, &mut count).await {
        Ok(answer) => {
            count.outcome = Outcome::Ok;
            answer
        }
        Err(error) => {
            count.outcome = error.outcome();
            error.into()
        }
    }
}

async fn answer<B: RequestBody>(
    app: &App,
    target: Result<Target, RestError>,
    request: Request<B>,
    count: &mut RequestCount<'_>,
) -> Result<Answer, RestError> {
    let (parts, body) = request.into_parts();
    let incoming = target.and_then(|target| {
        count.model = Some(target.model.clone());
        let head = Head::new(target.model, target.version, &parts.headers)?;
        let is_raw = head.header_length == Some(0);
        let metadata = is_raw.then(|| app.service.model_metadata(&head.model, head.version)).transpose()?;
        Ok((head, metadata))
    });
    let (head, metadata) = match incoming {
        Ok(incoming) => incoming,
        Err(error) => {
            body::discard(&parts.headers, body, app.limits.max_request_bytes).await;
            return Err(error);
        }
    };
    let incoming = Incoming { head, headers: &parts.headers, body, metadata };
    let Decoded { request, form } = body::read(incoming, &app.admission, app.limits).await?;
    count.received();
    let reservation = app.admission.reserve_beside(request.size_bytes());
    let response = app.service.infer(request).await?;
    respond(response, form, reservation).await
}

async fn respond(response: InferResponse, form: OutputForm, mut reservation: Reservation) -> Result<Answer, RestError> {
    let takes_long = text_bound(&response, &form) > INLINE_BYTES;
    let encoded = here_or_off_thread(takes_long, move || Ok(encode(response, &form, &mut reservation)?)).await?;
    let mut response = Response::new(AnswerBody::new(encoded.pieces));
    let content_type = if encoded.is_binary { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if encoded.is_binary {
        response.headers_mut().insert(HEADER_LENGTH, encoded.json_bytes.into());
    }
    Ok(Answer::inference(response))
}
