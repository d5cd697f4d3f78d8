//! One table of requests that REST (JSON and binary) and gRPC (typed contents and raw) must answer alike.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::json;
use tonic::Code;
use torchmodel_core::tensor::{DataType, DataTypeExt};
use torchmodel_server::grpc::proto::{
    InferParameter, ModelInferRequest, infer_parameter::ParameterChoice,
    model_infer_request::InferRequestedOutputTensor,
};
use torchmodel_testing::{
    TestTensor, bytes_element, grpc, grpc_input, http, json_input, rest_outputs, to_contents, to_json,
};

use crate::server::{DATATYPES, Server};

/// What must come of a request.
enum Expected {
    Outputs(Vec<TestTensor>),
    /// HTTP status, gRPC code, and a part of the message.
    Refused(u16, Code, &'static str),
}

struct Case {
    name: String,
    model: String,
    version: &'static str,
    inputs: Vec<TestTensor>,
    outputs: Vec<&'static str>,
    parameters: Vec<(&'static str, i64)>,
    expected: Expected,
}

fn tensor(name: &str, datatype: DataType, shape: &[i64], data: Vec<u8>) -> TestTensor {
    TestTensor { name: name.into(), datatype, shape: shape.to_vec(), data }
}

fn ints(name: &str, values: &[i32]) -> TestTensor {
    let shape = [i64::try_from(values.len()).unwrap()];
    tensor(name, DataType::Int32, &shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

fn case(name: &str, model: &str, inputs: Vec<TestTensor>, expected: Expected) -> Case {
    let (name, model) = (name.to_owned(), model.to_owned());
    Case { name, model, version: "", inputs, outputs: vec![], parameters: vec![], expected }
}

/// A request of `add_sub` that is right but for what is changed.
fn add_sub(name: &str, expected: Expected) -> Case {
    case(name, "add_sub", both(), expected)
}

/// A request of `vector` with one tensor.
fn vector(name: &str, shape: &[i64], size_bytes: usize, expected: Expected) -> Case {
    case(name, "vector", vec![tensor("input", DataType::Fp32, shape, vec![0; size_bytes])], expected)
}

impl Case {
    fn version(self, version: &'static str) -> Self {
        Self { version, ..self }
    }

    fn outputs(self, outputs: &[&'static str]) -> Self {
        Self { outputs: outputs.to_vec(), ..self }
    }

    fn parameter(self, name: &'static str, value: i64) -> Self {
        Self { parameters: vec![(name, value)], ..self }
    }
}

fn invalid(text: &'static str) -> Expected {
    Expected::Refused(400, Code::InvalidArgument, text)
}

fn not_found(text: &'static str) -> Expected {
    Expected::Refused(404, Code::NotFound, text)
}

fn both() -> Vec<TestTensor> {
    vec![ints("INPUT0", &[1, 2]), ints("INPUT1", &[10, 20])]
}

/// Four elements with the extremes of each datatype.
fn sample(datatype: DataType) -> Vec<u8> {
    match datatype {
        DataType::Bool => vec![0, 1, 1, 0],
        DataType::Fp32 => [f32::MAX, f32::MIN_POSITIVE, -0.0, 0.1].iter().flat_map(|x| x.to_le_bytes()).collect(),
        DataType::Fp64 => [f64::MAX, 5e-324, -1.0, 0.1].iter().flat_map(|x| x.to_le_bytes()).collect(),
        DataType::Bytes => {
            ["", "a\0b", "ü\"\\", "[1,2]"].iter().flat_map(|text| bytes_element(text.as_bytes())).collect()
        }
        other => {
            let size = other.size_bytes().unwrap();
            [vec![0; size], vec![0xff; size], [vec![0xff; size - 1], vec![0x7f]].concat(), vec![1; size]].concat()
        }
    }
}

fn answered() -> Vec<Case> {
    let sum = || ints("OUTPUT0", &[11, 22]);
    let difference = || ints("OUTPUT1", &[-9, -18]);
    let all = || Expected::Outputs(vec![sum(), difference()]);
    let swapped = Expected::Outputs(vec![difference(), sum()]);
    let empty = Expected::Outputs(vec![tensor("output", DataType::Fp32, &[0], vec![])]);
    vec![
        add_sub("two inputs, two outputs", all()),
        add_sub("a version", all()).version("1"),
        add_sub("outputs in the order asked for", swapped).outputs(&["OUTPUT1", "OUTPUT0"]),
        add_sub("one output", Expected::Outputs(vec![difference()])).outputs(&["OUTPUT1"]),
        add_sub("a timeout that is kept", all()).parameter("timeout", 60_000_000),
        add_sub("no timeout", all()).parameter("timeout", 0),
        vector("an empty tensor", &[0], 0, empty),
    ]
}

fn wrong_names() -> Vec<Case> {
    let unknown_output = invalid("unexpected inference output 'Q' for model 'add_sub'");
    let no_number = invalid("failed to get model version from specified version string '1x'");
    let other = |name: &str, inputs: Vec<TestTensor>, text| case(name, "add_sub", inputs, invalid(text));
    vec![
        case("an unknown model", "nope", both(), not_found("Request for unknown model: 'nope'")),
        add_sub("an unknown version", not_found("version 9 is not found")).version("9"),
        add_sub("a version that is no number", no_number).version("1x"),
        add_sub("an unknown output", unknown_output).outputs(&["Q"]),
        add_sub("an output twice", invalid("'OUTPUT0' is given more than once")).outputs(&["OUTPUT0", "OUTPUT0"]),
        other("no inputs", vec![], "INPUT0"),
        other("an input is missing", vec![ints("INPUT0", &[1])], "INPUT1"),
        other("an unknown input", [both(), vec![ints("Z", &[1])]].concat(), "'Z'"),
        other("an input twice", [both(), both()].concat(), "'INPUT0' is given more than once"),
    ]
}

fn wrong_tensors() -> Vec<Case> {
    let datatype = invalid("inference input 'input' data-type is 'INT32', but model 'vector' expects 'FP32'");
    vec![
        case("another datatype", "vector", vec![ints("input", &[1])], datatype),
        vector("another rank", &[1, 1], 4, invalid("unexpected shape for input 'input' for model 'vector'")),
        vector("too little data", &[2], 4, invalid("'input'")),
        vector("too much data", &[2], 12, invalid("'input'")),
        vector("a negative dimension", &[-1], 4, invalid("negative dimension")),
        vector("a shape that overflows", &[i64::MAX, 8], 4, invalid("too many elements")),
        vector("a shape beyond the limit", &[1 << 40], 4, invalid("more than the limit")),
        vector("too many dimensions", &[1; 65], 4, invalid("at most 64 are possible")),
        add_sub("too many outputs", invalid("too many outputs: at most 1024")).outputs(&vec!["OUTPUT0"; 1025]),
        case("too many inputs", "add_sub", vec![ints("", &[]); 1025], invalid("too many inputs: at most 1024")),
        vector("many rows of nothing", &[1 << 40, 0], 0, invalid("more than the limit")),
    ]
}

fn wrong_parameters_and_states() -> Vec<Case> {
    let unsupported = Expected::Refused(501, Code::Unimplemented, "'sequence_id'");
    let late = Expected::Refused(504, Code::DeadlineExceeded, "");
    vec![
        add_sub("a negative timeout", invalid("'timeout'")).parameter("timeout", -1),
        add_sub("a priority", invalid("'priority'")).parameter("priority", 7),
        add_sub("a sequence", unsupported).parameter("sequence_id", 7),
        add_sub("a reserved parameter", invalid("'triton_x'")).parameter("triton_x", 7),
        case("a model that fails", "broken", vec![], Expected::Refused(500, Code::Internal, "it broke")),
        case("a model that loads", "loading", vec![], Expected::Refused(503, Code::Unavailable, "loading")),
        case("a deadline that passes", "slow", vec![], late).parameter("timeout", 1000),
    ]
}

fn every_datatype() -> Vec<Case> {
    let of = |datatype: DataType, shape: [i64; 2]| {
        let name = format!("identity_{}", datatype.as_str().to_lowercase());
        let input = tensor("input", datatype, &shape, sample(datatype));
        let output = TestTensor { name: "output".into(), ..input.clone() };
        case(&name, &name, vec![input], Expected::Outputs(vec![output]))
    };
    DATATYPES.iter().flat_map(|datatype| [of(*datatype, [2, 2]), of(*datatype, [4, 1])]).collect()
}

/// What came of it: outputs, or status and message.
type Outcome = Result<Vec<TestTensor>, (String, String)>;

fn check(case: &Case, form: &str, outcome: Outcome, refused: impl Fn(u16, Code) -> String) {
    match (&case.expected, outcome) {
        (Expected::Outputs(expected), Ok(outputs)) => assert_eq!(&outputs, expected, "{}, {form}", case.name),
        (Expected::Refused(status, code, text), Err((actual, message))) => {
            assert_eq!(actual, refused(*status, *code), "{}, {form}: {message}", case.name);
            assert!(message.contains(text), "{}, {form}: {message}", case.name);
        }
        (_, outcome) => panic!("{}, {form}: {outcome:?}", case.name),
    }
}

async fn ask_rest(server: &Server, case: &Case, is_binary: bool) -> Option<Outcome> {
    let mut blobs = Vec::new();
    let mut inputs = Vec::new();
    for input in &case.inputs {
        if is_binary {
            inputs.push(json_input(input, None));
            blobs.extend_from_slice(&input.data);
        } else {
            inputs.push(json_input(input, Some(to_json(input)?)));
        }
    }
    let mut parameters: serde_json::Map<_, _> =
        case.parameters.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    parameters.insert("binary_data_output".into(), is_binary.into());
    let outputs: Vec<_> = case.outputs.iter().map(|name| json!({ "name": name })).collect();
    let body = json!({ "id": "7", "inputs": inputs, "outputs": outputs, "parameters": parameters }).to_string();
    let version = if case.version.is_empty() { String::new() } else { format!("/versions/{}", case.version) };
    let line = format!("POST /v2/models/{}{version}/infer", case.model);
    let length = body.len().to_string();
    let headers: &[(&str, &str)] = if is_binary { &[("Inference-Header-Content-Length", &length)] } else { &[] };
    let answer = http(server.rest, &line, headers, &[body.as_bytes(), &blobs].concat()).await;
    if answer.status == 200 {
        return Some(Ok(rest_outputs(&answer)));
    }
    Some(Err((answer.status.to_string(), answer.json()["error"].as_str().unwrap().to_owned())))
}

async fn ask_grpc(server: &Server, case: &Case, is_raw: bool) -> Option<Outcome> {
    let mut inputs = Vec::new();
    for input in &case.inputs {
        inputs.push(grpc_input(input, if is_raw { None } else { Some(to_contents(input)?) }));
    }
    let raw_input_contents =
        case.inputs.iter().filter(|_| is_raw).map(|input| Bytes::from(input.data.clone())).collect();
    let outputs =
        case.outputs.iter().map(|name| InferRequestedOutputTensor { name: (*name).into(), ..Default::default() });
    let parameters = case.parameters.iter().map(|(name, value)| {
        ((*name).to_owned(), InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(*value)) })
    });
    let request = ModelInferRequest {
        model_name: case.model.clone(),
        model_version: case.version.into(),
        id: "7".into(),
        parameters: parameters.collect::<HashMap<_, _>>(),
        inputs,
        outputs: outputs.collect(),
        raw_input_contents,
    };
    let outcome = match grpc(server.grpc).await.model_infer(request).await {
        Err(status) => Err((format!("{:?}", status.code()), status.message().to_owned())),
        Ok(response) => {
            let response = response.into_inner();
            assert_eq!(response.id, "7");
            assert_eq!(response.outputs.len(), response.raw_output_contents.len(), "always raw");
            let outputs = response.outputs.into_iter().zip(response.raw_output_contents);
            let outputs = outputs.map(|(output, data)| TestTensor {
                name: output.name,
                datatype: DataType::parse(&output.datatype).unwrap(),
                shape: output.shape,
                data: data.to_vec(),
            });
            Ok(outputs.collect())
        }
    };
    Some(outcome)
}

#[tokio::test]
async fn rest_and_grpc_answer_every_case_alike() {
    let server = Server::start().await;
    server.add_loading("loading");
    let mut asked = 0;
    let cases = [answered(), wrong_names(), wrong_tensors(), wrong_parameters_and_states(), every_datatype()];
    for case in cases.into_iter().flatten() {
        for is_binary in [false, true] {
            if let Some(outcome) = ask_rest(&server, &case, is_binary).await {
                asked += 1;
                check(&case, &format!("REST, binary: {is_binary}"), outcome, |status, _| status.to_string());
            }
            if let Some(outcome) = ask_grpc(&server, &case, is_binary).await {
                asked += 1;
                check(&case, &format!("gRPC, raw: {is_binary}"), outcome, |_, code| format!("{code:?}"));
            }
        }
    }
    assert!(asked > 150, "{asked} requests were made");
}
