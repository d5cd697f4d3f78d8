//! An inference client over REST.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use torchmodel_testing::{TestTensor, fp32_values, json_input, to_json};

use crate::wait::{PATIENCE, in_time};

/// Where the JSON ends in a body with binary tensor data.
const HEADER_LENGTH: &str = "inference-header-content-length";

/// Asks one address.
#[derive(Clone, Debug)]
pub struct RestClient {
    http: reqwest::Client,
    address: SocketAddr,
}

impl RestClient {
    /// Keeps connections open between requests.
    pub fn new(address: SocketAddr) -> Result<Self> {
        Ok(Self { http: reqwest::Client::builder().no_proxy().build()?, address })
    }

    /// Opens a connection for each request, so that a Service can choose another pod for each.
    pub fn without_keep_alive(address: SocketAddr) -> Result<Self> {
        Ok(Self { http: reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build()?, address })
    }

    /// GETs a path; status and body.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let get = async {
            let response = self.http.get(format!("http://{}{path}", self.address)).send().await?;
            let status = response.status().as_u16();
            anyhow::Ok((status, response.text().await?))
        };
        in_time(&format!("GET {path}"), PATIENCE, get).await?.with_context(|| format!("GET {path} of {}", self.address))
    }

    /// An inference in JSON; the first output's FP32 values.
    pub async fn infer(&self, model: &str, inputs: &[TestTensor]) -> Result<Vec<f32>> {
        let inputs: Vec<Value> = inputs.iter().map(|input| json_input(input, to_json(input))).collect();
        let (_, body) = self.post(model, json!({"inputs": inputs}).to_string().into(), None).await?;
        let answer: Value = serde_json::from_slice(&body)?;
        Ok(serde_json::from_value(answer["outputs"][0]["data"].clone())?)
    }

    /// The same with binary tensor data in both directions.
    pub async fn infer_binary(&self, model: &str, inputs: &[TestTensor]) -> Result<Vec<f32>> {
        let described: Vec<Value> = inputs.iter().map(|input| json_input(input, None)).collect();
        let header = json!({"inputs": described, "parameters": {"binary_data_output": true}}).to_string();
        let length = header.len();
        let mut body = header.into_bytes();
        for input in inputs {
            body.extend_from_slice(&input.data);
        }
        let (header_length, body) = self.post(model, body, Some(length)).await?;
        let at = header_length.context("the answer is not binary")?;
        Ok(fp32_values(body.get(at..).context("the answer is shorter than its header says")?))
    }

    /// Status and body of an inference request as it is given.
    pub async fn post_raw(&self, model: &str, body: &'static str) -> Result<(u16, String)> {
        let url = format!("http://{}/v2/models/{model}/infer", self.address);
        let response = self.http.post(url).body(body).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    async fn post(&self, model: &str, body: Vec<u8>, header: Option<usize>) -> Result<(Option<usize>, Vec<u8>)> {
        let mut request = self.http.post(format!("http://{}/v2/models/{model}/infer", self.address)).body(body);
        if let Some(length) = header {
            request = request.header(HEADER_LENGTH, length);
        }
        let answer = async {
            let response = request.send().await?;
            let status = response.status();
            let header = response.headers().get(HEADER_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
            let body = response.bytes().await?;
            ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
            Ok((header, body.to_vec()))
        };
        in_time("an answer over REST", PATIENCE, answer).await?
    }
}
