//! Statistics, configuration, index and times: the same by either protocol.

use std::time::Duration;

use serde_json::{Value, json};
use tonic::Code;
use torchmodel_server::grpc::proto::{
    DataType, ModelConfigRequest, ModelStatisticsRequest, RepositoryIndexRequest, model_config::SchedulingChoice,
};
use torchmodel_testing::{TestTensor, grpc, grpc_request, http};

use crate::server::Server;

const VECTOR: &str = r#"{"inputs":[{"name":"input","shape":[2],"datatype":"FP32","data":[1.5,-2]}]}"#;
const ROWS: &str = r#"{"inputs":[{"name":"input","shape":[3,2],"datatype":"FP32","data":[1,2,3,4,5,6]}]}"#;

async fn get(server: &Server, path: &str) -> Value {
    let answer = http(server.rest, &format!("GET {path}"), &[], b"").await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

#[tokio::test]
async fn statistics_tell_requests_rows_and_batch_sizes() {
    let server = Server::start().await;
    for _ in 0..2 {
        http(server.rest, "POST /v2/models/batched/infer", &[], ROWS.as_bytes()).await;
    }
    http(server.rest, "POST /v2/models/batched/infer", &[], VECTOR.as_bytes()).await;
    let told = get(&server, "/v2/models/batched/stats").await;
    assert_eq!(told, get(&server, "/v2/models/batched/versions/1/stats").await);
    let model = &told["model_stats"][0];
    assert_eq!((&model["name"], &model["version"]), (&json!("batched"), &json!("1")));
    assert_eq!((&model["inference_count"], &model["execution_count"]), (&json!(6), &json!(2)));
    let stages = &model["inference_stats"];
    assert_eq!((&stages["success"]["count"], &stages["fail"]["count"]), (&json!(2), &json!(1)));
    for stage in
        ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"]
    {
        assert!(stages[stage]["count"].is_u64() && stages[stage]["ns"].is_u64(), "{stage}: {stages}");
    }
    assert!(stages["success"]["ns"].as_u64() > Some(0));
    assert_eq!((&model["batch_stats"][0]["batch_size"], &model["response_stats"]), (&json!(3), &json!({})));
    assert_eq!((&model["batch_stats"][0]["compute_infer"]["count"], &model["memory_usage"]), (&json!(2), &json!([])));

    let request = ModelStatisticsRequest { name: "batched".into(), version: String::new() };
    let mut client = grpc(server.grpc).await;
    let statistics = client.model_statistics(request).await.unwrap().into_inner().model_stats.remove(0);
    assert_eq!((statistics.inference_count, statistics.execution_count), (6, 2));
    assert_eq!(Some(statistics.last_inference), model["last_inference"].as_u64());
    let success = statistics.inference_stats.unwrap().success.unwrap();
    assert_eq!(
        (Some(success.count), Some(success.ns)),
        (stages["success"]["count"].as_u64(), stages["success"]["ns"].as_u64())
    );
}

#[tokio::test]
async fn statistics_without_a_name_are_of_every_model() {
    let server = Server::start().await;
    let names = |told: &Value| told["model_stats"].as_array().unwrap().len();
    let all = names(&get(&server, "/v2/models/stats").await);
    assert_eq!(all, get(&server, "/v2/models").await["models"].as_array().unwrap().len());
    let mut client = grpc(server.grpc).await;
    let statistics = client.model_statistics(ModelStatisticsRequest::default()).await.unwrap().into_inner();
    assert_eq!(statistics.model_stats.len(), all);
    let answer = http(server.rest, "GET /v2/models/nope/stats", &[], b"").await;
    assert_eq!(answer.status, 404, "{answer:?}");
    let unknown = ModelStatisticsRequest { name: "nope".into(), version: String::new() };
    assert_eq!(client.model_statistics(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn the_configuration_says_what_is_a_batch() {
    let server = Server::start().await;
    let told = get(&server, "/v2/models/batched/config").await;
    assert_eq!(told, get(&server, "/v2/models/batched/versions/1/config").await);
    assert_eq!((&told["platform"], &told["backend"]), (&json!("pytorch_libtorch"), &json!("pytorch")));
    assert_eq!(told["max_batch_size"], 8);
    assert_eq!((&told["input"][0]["data_type"], &told["input"][0]["dims"]), (&json!("TYPE_FP32"), &json!([2])));
    assert_eq!(told["output"][0]["dims"], json!([2]));
    assert_eq!(told["dynamic_batching"]["max_queue_delay_microseconds"], 0);
    let plain = get(&server, "/v2/models/identity_bytes/config").await;
    assert_eq!((&plain["max_batch_size"], plain.get("dynamic_batching")), (&json!(0), None));
    assert_eq!(
        (&plain["input"][0]["data_type"], &plain["input"][0]["dims"]),
        (&json!("TYPE_STRING"), &json!([-1, -1]))
    );

    let mut client = grpc(server.grpc).await;
    let request = ModelConfigRequest { name: "batched".into(), version: "1".into() };
    let config = client.model_config(request).await.unwrap().into_inner().config.unwrap();
    assert_eq!(
        (config.max_batch_size, config.input[0].data_type(), config.input[0].dims.as_slice()),
        (8, DataType::TypeFp32, &[2][..])
    );
    assert!(matches!(config.scheduling_choice, Some(SchedulingChoice::DynamicBatching(_))));
    let unknown = ModelConfigRequest { name: "nope".into(), version: String::new() };
    assert_eq!(client.model_config(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn the_index_tells_every_version_and_its_state() {
    let server = Server::start().await;
    server.add_loading("later");
    let index = async |body: &str| http(server.rest, "POST /v2/repository/index", &[], body.as_bytes()).await;
    let all = index("").await.json();
    let find = |name: &str| all.as_array().unwrap().iter().find(|row| row["name"] == name);
    assert_eq!(find("vector"), Some(&json!({ "name": "vector", "version": "1", "state": "READY" })));
    assert_eq!(find("later").unwrap()["state"], "LOADING");
    assert_eq!(index("{}").await.json(), all);
    let ready = index(r#"{"ready":true}"#).await.json();
    assert_eq!(ready.as_array().unwrap().len() + 1, all.as_array().unwrap().len());
    for wrong in ["[", r#"{"ready":1}"#] {
        assert_eq!(index(wrong).await.status, 400, "{wrong}");
    }
    assert_eq!(index(&" ".repeat(100_000)).await.status, 413);

    let mut client = grpc(server.grpc).await;
    let request = RepositoryIndexRequest { repository_name: String::new(), ready: true };
    assert_eq!(
        client.repository_index(request).await.unwrap().into_inner().models.len(),
        ready.as_array().unwrap().len()
    );
    let named = RepositoryIndexRequest { repository_name: "other".into(), ready: false };
    assert_eq!(client.repository_index(named).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn the_server_names_the_extensions_that_it_has() {
    let server = Server::start().await;
    let extensions = get(&server, "/v2").await["extensions"].clone();
    assert_eq!(extensions, json!(["binary_tensor_data", "parameters", "statistics", "model_configuration"]));
}

#[tokio::test]
async fn the_time_of_receiving_and_sending_is_recorded_for_each_protocol() {
    let server = Server::start().await;
    http(server.rest, "POST /v2/models/batched/infer", &[], ROWS.as_bytes()).await;
    let tensor = TestTensor::fp32("input", &[1, 2], &[1.0, 2.0]);
    grpc(server.grpc).await.model_infer(grpc_request("batched", &[tensor])).await.unwrap();
    let count = |text: &str, name: &str, protocol: &str| {
        text.contains(&format!("torchmodel_request_{name}_duration_seconds_count{{protocol=\"{protocol}\"}} 1\n"))
    };
    let is_recorded = async || {
        let text = String::from_utf8(http(server.admin, "GET /metrics", &[], b"").await.body).unwrap();
        ["receive", "send"].iter().all(|name| ["rest", "grpc"].iter().all(|protocol| count(&text, name, protocol)))
    };
    // The client may have the last byte before the server knows.
    let recorded = async {
        while !is_recorded().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), recorded).await.expect("each once");
}
