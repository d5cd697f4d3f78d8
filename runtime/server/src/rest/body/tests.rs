//! Tests of reading bodies: compression, limits, and what is admitted.

use std::{io, io::Write, time::Instant};

use axum::body::Body;
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use torchmodel_core::{inference::InferError, outcome::Outcome, signature::InputSignature, tensor::DataType};

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Reads `body` as the one input, UINT8, of a model.
async fn read_raw(headers: &HeaderMap, body: Body, limit: usize, admission: &Admission) -> Result<Bytes, RestError> {
    let input = InputSignature {
        name: "x".into(),
        datatype: Some(DataType::Uint8),
        shape: Some(vec![-1]),
        is_optional: false,
        is_batched: false,
        is_flattened: false,
    };
    let metadata = ModelMetadata {
        name: "m".parse().unwrap(),
        versions: vec![],
        platform: String::new(),
        inputs: vec![input],
        outputs: vec![],
        properties: std::collections::BTreeMap::new(),
    };
    let head = Head {
        model: "m".parse().unwrap(),
        version: None,
        arrival: Instant::now(),
        deadline: None,
        header_length: Some(0),
    };
    let limits = Limits { max_request_bytes: limit, ..Limits::default() };
    let incoming = Incoming { head, headers, body, metadata: Some(metadata) };
    let decoded = read(incoming, admission, limits).await?;
    Ok(decoded.request.inputs.into_iter().next().unwrap().tensor.into_parts().2)
}

async fn read_as(encoding: &str, bytes: Vec<u8>, limit: usize) -> Result<Bytes, RestError> {
    let headers = HeaderMap::from_iter([(header::CONTENT_ENCODING, encoding.parse().unwrap())]);
    let admission = Admission::new(64 << 20);
    let result = read_raw(&headers, Body::from(bytes), limit, &admission).await;
    assert!(result.is_ok() || admission.held() == 0);
    result
}

#[tokio::test]
async fn gzip_and_deflate_are_decompressed_whatever_the_size() {
    for size in [0, 10, 300_000] {
        let plain: Vec<u8> = (0..size).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        assert_eq!(read_as("gzip", gzip(&plain), 301_000).await, Ok(plain.clone().into()));
        assert_eq!(read_as("Deflate", zlib(&plain), 301_000).await, Ok(plain.into()));
    }
}

#[tokio::test]
async fn a_bomb_ends_at_the_limit() {
    for (encoding, bomb) in [("gzip", gzip(&vec![0; 1 << 20])), ("deflate", zlib(&vec![0; 1 << 20]))] {
        assert!(bomb.len() < 10_000);
        assert_eq!(read_as(encoding, bomb, 10_000).await, Err(RestError::TooLarge(10_000)));
    }
}

#[tokio::test]
async fn corrupt_cut_or_trailing_data_is_the_clients_fault() {
    for (encoding, good) in [("gzip", gzip(b"hello hello hello")), ("deflate", zlib(b"hello hello hello"))] {
        assert!(read_as(encoding, good.clone(), 100).await.is_ok());
        let mut corrupt = good.clone();
        corrupt[12] ^= 0xff;
        let mut wrong_checksum = good.clone();
        let last = wrong_checksum.len() - 1;
        wrong_checksum[last] ^= 1;
        let trailing = [good.clone(), b"x".to_vec()].concat();
        let twice = [good.clone(), good.clone()].concat();
        let cuts = (0..good.len()).map(|length| good[..length].to_vec());
        for wrong in cuts.chain([corrupt, wrong_checksum, trailing, twice, b"hello".to_vec()]) {
            let error = read_as(encoding, wrong.clone(), 100).await.unwrap_err();
            assert_eq!(error.outcome(), Outcome::InvalidRequest, "{encoding} {wrong:?}");
        }
    }
}

fn frames(count: u8) -> Body {
    Body::from_stream(futures::stream::iter((0..count).map(|i| Ok::<_, io::Error>(Bytes::from(vec![i; 3])))))
}

#[tokio::test]
async fn a_body_of_many_frames_is_joined_and_limited() {
    let admission = Admission::new(1000);
    let read = async |limit| read_raw(&HeaderMap::new(), frames(10), limit, &admission).await;
    assert_eq!(read(30).await.unwrap().len(), 30);
    assert_eq!(read(29).await, Err(RestError::TooLarge(29)));
}

#[tokio::test]
async fn an_unknown_encoding_is_refused_and_a_long_announcement_is_not_read() {
    let error = read_as("br", vec![], 10).await.unwrap_err();
    assert_eq!(error, RestError::UnsupportedEncoding("br".into()));
    assert!(read_as("gzip, gzip", vec![], 10).await.is_err());
    let admission = Admission::new(1000);
    let result = read_raw(&HeaderMap::new(), Body::from(vec![0; 11]), 10, &admission).await;
    assert_eq!(result, Err(RestError::TooLarge(10)));
}

#[tokio::test]
async fn a_body_that_does_not_fit_is_refused_before_it_is_read_and_one_that_grows_when_it_does_not_fit_any_more() {
    let admission = Admission::new(100);
    let others = admission.reserve(80).unwrap();
    let read = async |body| read_raw(&HeaderMap::new(), body, 1000, &admission).await;
    for body in [Body::from(vec![0; 21]), frames(10)] {
        let error = read(body).await.unwrap_err();
        assert!(matches!(&error, RestError::Infer(InferError::Overloaded(_))), "{error:?}");
        assert_eq!(admission.held(), 80);
    }
    let tensor = read(Body::from(vec![0; 20])).await.unwrap();
    assert_eq!(admission.held(), 100);
    drop((tensor, others));
    assert_eq!(admission.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_pauses_for_long_is_given_up() {
    let admission = Admission::new(100);
    let body = Body::from_stream(futures::stream::pending::<io::Result<Bytes>>());
    assert_eq!(read_raw(&HeaderMap::new(), body, 50, &admission).await, Err(RestError::BodyTimeout));
}
