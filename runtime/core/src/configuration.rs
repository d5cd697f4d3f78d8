//! How a version is served, in the form of Triton's model configuration extension.
//!
//! Made by [`crate::version::Version::configuration`]; both protocols encode it, field by field. Clients such as `perf_analyzer` read it to learn whether
//! the first dimension is a batch. Invariant: shapes stand here without the batch dimension, as that extension wants it.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    config::ModelConfig,
    model_key::ModelName,
    plan::ExecutionPlan,
    signature::Signature,
    tensor::{DataType, DataTypeExt as _},
};

/// What Triton calls models of this kind.
pub const PLATFORM: &str = "pytorch_libtorch";
/// What Triton calls the engine of such models.
pub const BACKEND: &str = "pytorch";

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorConfiguration {
    /// Its name.
    pub name: String,
    /// Its datatype; `None` where any is taken or nobody knows before the first inference.
    pub datatype: Option<DataType>,
    /// Its shape without the batch dimension; one dimension of any size where nobody knows.
    pub dims: Vec<i64>,
    /// Whether a request may leave it out.
    pub is_optional: bool,
}

impl TensorConfiguration {
    /// The datatype as this extension spells it.
    #[must_use]
    pub fn type_name(&self) -> String {
        match self.datatype {
            None => "TYPE_INVALID".into(),
            Some(DataType::Bytes) => "TYPE_STRING".into(),
            Some(datatype) => format!("TYPE_{}", datatype.as_str()),
        }
    }
}

/// How requests are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DynamicBatching {
    /// How long the first request may wait for company.
    pub max_queue_delay: Duration,
}

/// How a version is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelConfiguration {
    /// The model.
    pub name: ModelName,
    /// Most rows of a request; 0 when the first dimension is not a batch.
    pub max_batch_size: u64,
    /// Inputs in the method's order.
    pub inputs: Vec<TensorConfiguration>,
    /// Outputs in the method's order, as far as they are known.
    pub outputs: Vec<TensorConfiguration>,
    /// Instances.
    pub instances: usize,
    /// `None` when each request runs alone.
    pub dynamic_batching: Option<DynamicBatching>,
    /// What else was set: the method and the threads of an operator.
    pub parameters: BTreeMap<String, String>,
}

impl ModelConfiguration {
    /// The configuration of a version that is served as `config` says and `plan` decided, and has that signature.
    #[must_use]
    pub fn of(config: &ModelConfig, plan: &ExecutionPlan, signature: &Signature) -> Self {
        let is_batch = plan.max_batch_size.is_some();
        let without_batch = |shape: Option<&Vec<i64>>, is_batched: bool| match shape {
            Some(shape) if is_batched => shape.iter().skip(1).copied().collect(),
            Some(shape) => shape.clone(),
            None => vec![-1],
        };
        let inputs = signature.inputs.iter().map(|input| TensorConfiguration {
            name: input.name.clone(),
            datatype: input.datatype,
            dims: without_batch(input.shape.as_ref(), input.is_batched),
            is_optional: input.is_optional,
        });
        let outputs = signature.outputs.iter().map(|output| TensorConfiguration {
            name: output.name.clone(),
            datatype: output.datatype,
            dims: without_batch(output.shape.as_ref(), is_batch),
            is_optional: false,
        });
        let mut parameters = BTreeMap::from([("METHOD".to_owned(), config.method.clone())]);
        if let Some(threads) = config.intra_op_threads {
            parameters.insert("INTRA_OP_THREAD_COUNT".into(), threads.to_string());
        }
        Self {
            name: config.name.clone(),
            max_batch_size: plan.max_batch_size.unwrap_or(0),
            inputs: inputs.collect(),
            outputs: outputs.collect(),
            instances: plan.placements.len(),
            dynamic_batching: (plan.queue.max_rows > 1)
                .then_some(DynamicBatching { max_queue_delay: plan.queue.max_delay }),
            parameters,
        }
    }
}

#[cfg(test)]
mod tests {
    use torchmodel_crds::{BatchingSpec, ModelSpec};

    use super::*;
    use crate::{
        interface::{Interface, MethodInterface, ValueType},
        plan::{DeviceKind, Machine},
        signature::{InputSignature, OutputSignature},
    };

    fn configuration(batching: Option<BatchingSpec>, is_stateful: bool) -> ModelConfiguration {
        let spec = ModelSpec { batching, instances: Some(2), ..ModelSpec::default() };
        let config = ModelConfig::check(&spec, Some("m".into())).unwrap();
        let method = MethodInterface {
            name: "forward".into(),
            arguments: Vec::new(),
            returns: ValueType::Tensor,
            is_stateful,
            mutates_inputs: false,
            duration_depends_on_values: false,
        };
        let machine = Machine { cpus: 2, devices: vec![DeviceKind::Cpu] };
        let plan = ExecutionPlan::of(&Interface { methods: vec![method] }, &config, &machine).unwrap();
        let is_batch = plan.max_batch_size.is_some();
        let input = |name: &str, shape: Option<Vec<i64>>, is_batched: bool| InputSignature {
            name: name.into(),
            datatype: Some(DataType::Fp32),
            shape,
            is_optional: false,
            is_batched: is_batched && is_batch,
            is_flattened: false,
        };
        let signature = Signature {
            inputs: vec![
                input("x", Some(vec![-1, 3, 4]), true),
                input("scale", Some(vec![1]), false),
                input("z", None, true),
            ],
            outputs: vec![OutputSignature { name: "y".into(), datatype: None, shape: Some(vec![-1, 5]) }],
            ..Signature::default()
        };
        ModelConfiguration::of(&config, &plan, &signature)
    }

    fn dims(tensors: &[TensorConfiguration]) -> Vec<&[i64]> {
        tensors.iter().map(|tensor| tensor.dims.as_slice()).collect()
    }

    #[test]
    fn shapes_stand_without_the_batch_dimension_where_there_is_one() {
        let batch = configuration(Some(BatchingSpec { max_batch_size: 8, max_delay: None }), false);
        assert_eq!(dims(&batch.inputs), [&[3, 4][..], &[1], &[-1]]);
        assert_eq!(dims(&batch.outputs), [&[5]]);
        assert_eq!((batch.max_batch_size, batch.instances), (8, 2));
        assert_eq!(batch.dynamic_batching, Some(DynamicBatching { max_queue_delay: Duration::ZERO }));
        let plain = configuration(None, false);
        assert_eq!((plain.max_batch_size, plain.dynamic_batching), (0, None));
        assert_eq!(dims(&plain.inputs), [&[-1, 3, 4][..], &[1], &[-1]]);
        assert_eq!(dims(&plain.outputs), [&[-1, 5]]);
    }

    #[test]
    fn a_stateful_model_has_one_instance_and_joins_no_requests() {
        let stateful = configuration(Some(BatchingSpec { max_batch_size: 8, max_delay: None }), true);
        assert_eq!((stateful.instances, stateful.max_batch_size, stateful.dynamic_batching), (1, 0, None));
    }
}
