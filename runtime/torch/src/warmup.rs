//! The inferences that run before a model is ready.
//!
//! [`plan`] is pure: from the configuration and the signature to the inputs of each run. Invariant: an input whose form is not
//! known makes the plan empty, with a log line, unless the configuration asked for values, which is then an error.

use bytes::Bytes;
use half::{bf16, f16};
use torchmodel_core::{
    config::ModelConfig,
    engine::EngineInput,
    signature::{InputSignature, Signature},
    tensor::{DataType, DataTypeExt as _, element_count, push_bytes_element},
};
use torchmodel_crds::{Failure, FailurePhase, FailureReason};

/// Largest warm-up input, so that a wrong shape is an error and not an allocation.
const MAX_INPUT_BYTES: usize = 1 << 32;

fn failure(message: String) -> Failure {
    Failure::new(FailurePhase::Warmup, FailureReason::WarmupFailed, message)
}

/// The inputs of one run for each batch size; empty when there is nothing to run.
pub fn plan(config: &ModelConfig, signature: &Signature) -> Result<Vec<Vec<EngineInput>>, Failure> {
    let warmup = &config.warmup;
    if let Some(unknown) =
        warmup.inputs.iter().find(|input| !signature.inputs.iter().any(|known| known.name == input.name))
    {
        return Err(failure(format!("model.warmup.inputs names '{}', which the model does not take", unknown.name)));
    }
    if warmup.iterations == 0 {
        return Ok(Vec::new());
    }
    let mut runs = Vec::new();
    for batch_size in &warmup.batch_sizes {
        let mut inputs = Vec::new();
        for (index, input) in signature.inputs.iter().enumerate() {
            let given = warmup.inputs.iter().find(|given| given.name == input.name);
            if given.is_none() && input.is_optional {
                continue;
            }
            let shape = given.and_then(|given| given.shape.clone()).or_else(|| input.shape.clone());
            match form(input, shape, i64::from(*batch_size)) {
                Ok((datatype, shape)) => {
                    let fill = given.and_then(|given| given.fill.as_deref());
                    let data = filled(datatype, &shape, fill)
                        .map_err(|error| failure(format!("model.warmup.inputs: '{}': {error}", input.name)))?;
                    inputs.push(EngineInput { index, datatype, shape, parts: vec![data] });
                }
                Err(why) if warmup.inputs.is_empty() => {
                    tracing::warn!(
                        model = config.name.as_str(),
                        "warm-up skipped: input '{}' {why}; declare it in model.inputs or give model.warmup.inputs a shape, \
                         or the first requests will be slow",
                        input.name
                    );
                    return Ok(Vec::new());
                }
                Err(why) => return Err(failure(format!("model.warmup.inputs: input '{}' {why}", input.name))),
            }
        }
        runs.push(inputs);
    }
    Ok(runs)
}

/// Datatype and whole shape of an input, or why they are not known.
fn form(input: &InputSignature, shape: Option<Vec<i64>>, batch_size: i64) -> Result<(DataType, Vec<i64>), String> {
    let datatype = input.datatype.ok_or("has no declared datatype")?;
    let mut shape = shape.ok_or("has no declared shape")?;
    if let Some(first) = shape.first_mut()
        && (input.is_batched || *first == -1)
    {
        *first = batch_size;
    }
    if shape.contains(&-1) {
        return Err(format!("has open dimensions in its shape {:?}", input.shape.as_deref().unwrap_or_default()));
    }
    Ok((datatype, shape))
}

fn filled(datatype: DataType, shape: &[i64], fill: Option<&str>) -> Result<Bytes, String> {
    let count = element_count(shape).map_err(|error| error.to_string())?;
    let element = element(datatype, fill)?;
    if count.checked_mul(element.len()).is_none_or(|size| size > MAX_INPUT_BYTES) {
        return Err(format!("shape {shape:?} is larger than {MAX_INPUT_BYTES} bytes"));
    }
    Ok(element.repeat(count).into())
}

/// One element with the value that `fill` says, as the wire has it.
fn element(datatype: DataType, fill: Option<&str>) -> Result<Vec<u8>, String> {
    fn parse<T: std::str::FromStr + Default>(fill: Option<&str>, datatype: DataType) -> Result<T, String> {
        fill.map_or_else(
            || Ok(T::default()),
            |text| text.parse().map_err(|_| format!("fill '{text}' is not a {}", datatype.as_str())),
        )
    }
    Ok(match datatype {
        DataType::Bool => vec![u8::from(parse::<bool>(fill, datatype)?)],
        DataType::Uint8 => parse::<u8>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Uint16 => parse::<u16>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Uint32 => parse::<u32>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Uint64 => parse::<u64>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Int8 => parse::<i8>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Int16 => parse::<i16>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Int32 => parse::<i32>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Int64 => parse::<i64>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Fp16 => f16::from_f32(parse(fill, datatype)?).to_le_bytes().to_vec(),
        DataType::Bf16 => bf16::from_f32(parse(fill, datatype)?).to_le_bytes().to_vec(),
        DataType::Fp32 => parse::<f32>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Fp64 => parse::<f64>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Bytes => {
            let mut data = Vec::new();
            if !push_bytes_element(&mut data, fill.unwrap_or_default().as_bytes()) {
                return Err("fill is longer than 4 GiB".into());
            }
            data
        }
    })
}
