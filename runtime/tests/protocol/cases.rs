//! One table of requests that REST (JSON and binary) and gRPC (typed contents and raw) must answer alike.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::json;
use tonic::Code;
use torchmodel_runtime::{
    grpc::proto::{
        InferParameter, ModelInferRequest, infer_parameter::ParameterChoice,
        model_infer_request::InferRequestedOutputTensor,
    },
    tensor::{DataType, DataTypeExt},
};

use crate::{
    client::{TestTensor, bytes_element, grpc, grpc_input, http, json_input, rest_outputs, to_contents, to_json},
    server::{DATATYPES, Server},
};

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

fn invalid(text: &'static str) -> Expected {
    Expected::Refused(400, Code::InvalidArgument, text)
}

/// Four elements with the extremes of each datatype.
fn sample(datatype: DataType) -> Vec<u8> {
    match datatype {
        DataType::Bool => vec![0, 1, 1, 0],
        DataType::Fp32 => [f32::MAX, f32::MIN_POSITIVE, -0.0, 0.1].iter().flat_map(|x| x.to_le_bytes()).collect(),
        DataType::Fp64 => [f64::MAX, 5e-324, -1.0, 0.1].iter().flat_map(|x| x.to_le_bytes()).collect(),
        DataType::Bytes => ["", "a\0b", "ü\"\\", "[1,2]"].iter().flat_map(|text| bytes_element(text.as_bytes())).collect(),
        other => {
            let size = other.size_bytes().unwrap();
            [vec![0; size], vec![0xff; size], [vec![0xff; size - 1], vec![0x7f]].concat(), vec![1; size]].concat()
        }
    }
}

fn cases() -> Vec<Case> {
    let add_sub = |a: &[i32], b: &[i32]| vec![ints("INPUT0", a), ints("INPUT1", b)];
    let sums = || vec![ints("OUTPUT0", &[11, 22]), ints("OUTPUT1", &[-9, -18])];
    let both = || add_sub(&[1, 2], &[10, 20]);
    let mut cases = vec![
        case("two inputs, two outputs", "add_sub", both(), Expected::Outputs(sums())),
        Case { version: "1", ..case("a version", "add_sub", both(), Expected::Outputs(sums())) },
        Case {
            outputs: vec!["OUTPUT1", "OUTPUT0"],
            ..case("outputs in the order asked for", "add_sub", both(), Expected::Outputs(sums().into_iter().rev().collect()))
        },
        Case {
            outputs: vec!["OUTPUT1"],
            ..case("one output", "add_sub", both(), Expected::Outputs(sums().split_off(1)))
        },
        Case {
            parameters: vec![("timeout", 60_000_000)],
            ..case("a timeout that is kept", "add_sub", both(), Expected::Outputs(sums()))
        },
        case("an empty tensor", "vector", vec![tensor("input", DataType::Fp32, &[0], vec![])],
            Expected::Outputs(vec![tensor("output", DataType::Fp32, &[0], vec![])])),
        case("an unknown model", "nope", both(), Expected::Refused(404, Code::NotFound, "Request for unknown model: 'nope'")),
        Case {
            version: "9",
            ..case("an unknown version", "add_sub", both(), Expected::Refused(404, Code::NotFound, "version 9 is not found"))
        },
        Case {
            version: "1x",
            ..case("a version that is no number", "add_sub", both(), invalid("failed to get model version from specified version string '1x'"))
        },
        case("no inputs", "add_sub", vec![], invalid("INPUT0")),
        case("an input is missing", "add_sub", vec![ints("INPUT0", &[1])], invalid("INPUT1")),
        case("an unknown input", "add_sub", [both(), vec![ints("Z", &[1])]].concat(), invalid("'Z'")),
        case("an input twice", "add_sub", [both(), vec![ints("INPUT0", &[1])]].concat(), invalid("'INPUT0' is given more than once")),
        Case { outputs: vec!["Q"], ..case("an unknown output", "add_sub", both(), invalid("unexpected inference output 'Q' for model 'add_sub'")) },
        Case { outputs: vec!["OUTPUT0", "OUTPUT0"], ..case("an output twice", "add_sub", both(), invalid("'OUTPUT0' is given more than once")) },
        case("another datatype", "vector", vec![ints("input", &[1])],
            invalid("inference input 'input' data-type is 'INT32', but model 'vector' expects 'FP32'")),
        case("another rank", "vector", vec![tensor("input", DataType::Fp32, &[1, 1], vec![0; 4])],
            invalid("unexpected shape for input 'input' for model 'vector'")),
        case("too little data", "vector", vec![tensor("input", DataType::Fp32, &[2], vec![0; 4])], invalid("'input'")),
        case("too much data", "vector", vec![tensor("input", DataType::Fp32, &[2], vec![0; 12])], invalid("'input'")),
        case("a negative dimension", "vector", vec![tensor("input", DataType::Fp32, &[-1], vec![0; 4])], invalid("negative dimension")),
        case("a shape that overflows", "vector", vec![tensor("input", DataType::Fp32, &[i64::MAX, 8], vec![0; 4])], invalid("too many elements")),
        case("a shape beyond the limit", "vector", vec![tensor("input", DataType::Fp32, &[1 << 40], vec![0; 4])], invalid("more than the limit")),
        case("many rows of nothing", "vector", vec![tensor("input", DataType::Fp32, &[1 << 40, 0], vec![])], invalid("more than the limit")),
        Case { parameters: vec![("timeout", -1)], ..case("a negative timeout", "add_sub", both(), invalid("'timeout'")) },
        Case { parameters: vec![("priority", 7)], ..case("a priority", "add_sub", both(), invalid("'priority'")) },
        Case {
            parameters: vec![("sequence_id", 7)],
            ..case("a sequence", "add_sub", both(), Expected::Refused(501, Code::Unimplemented, "'sequence_id'"))
        },
        Case { parameters: vec![("triton_x", 7)], ..case("a reserved parameter", "add_sub", both(), invalid("'triton_x'")) },
        case("a model that fails", "broken", vec![], Expected::Refused(500, Code::Internal, "it broke")),
        case("a model that loads", "loading", vec![], Expected::Refused(503, Code::Unavailable, "loading")),
        Case {
            parameters: vec![("timeout", 1000)],
            ..case("a deadline that passes", "slow", vec![], Expected::Refused(504, Code::DeadlineExceeded, ""))
        },
    ];
    for datatype in DATATYPES {
        let name = format!("identity_{}", datatype.as_str().to_lowercase());
        for shape in [[2, 2], [4, 1]] {
            let data = || tensor("input", datatype, &shape, sample(datatype));
            let expected = TestTensor { name: "output".into(), ..data() };
            cases.push(case(&name, &name, vec![data()], Expected::Outputs(vec![expected])));
        }
    }
    cases
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
    let raw_input_contents = case.inputs.iter().filter(|_| is_raw).map(|input| Bytes::from(input.data.clone())).collect();
    let outputs = case.outputs.iter().map(|name| InferRequestedOutputTensor { name: (*name).into(), ..Default::default() });
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
    for case in cases() {
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
    assert!(asked > 200, "{asked} requests were made");
}
