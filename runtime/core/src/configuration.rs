//! How a version is served, in the form of Triton's model configuration extension.
//!
//! Made by [`crate::version::Version::configuration`]; both protocols encode it, field by field. Clients such as `perf_analyzer` read it to learn whether
//! the first dimension is a batch. Invariant: shapes stand here without the batch dimension, as that extension wants it.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    config::ModelConfig,
    model_key::{ModelKey, ModelName, ModelVersion},
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
    /// The version.
    pub version: ModelVersion,
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
    /// The configuration of the version `key`, which is served as `config` says and has that signature.
    #[must_use]
    pub fn of(key: &ModelKey, config: &ModelConfig, signature: &Signature) -> Self {
        let is_batch = signature.max_batch_size.is_some();
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
        let batching = config.batching.filter(|batching| is_batch && batching.max_batch_size > 1);
        Self {
            name: key.name.clone(),
            version: key.version,
            max_batch_size: signature.max_batch_size.unwrap_or(0),
            inputs: inputs.collect(),
            outputs: outputs.collect(),
            instances: if signature.is_stateful { 1 } else { config.instances },
            dynamic_batching: batching
                .filter(|_| !signature.is_stateful)
                .map(|batching| DynamicBatching { max_queue_delay: batching.max_delay }),
            parameters,
        }
    }
}

#[cfg(test)]
mod tests {
    use torchmodel_crds::{BatchingSpec, ModelSpec};

    use super::*;
    use crate::signature::{InputSignature, OutputSignature};

    fn configuration(batching: Option<BatchingSpec>, signature: &Signature) -> ModelConfiguration {
        let spec = ModelSpec { batching, instances: Some(2), ..ModelSpec::default() };
        let config = ModelConfig::check(&spec, Some("m".into())).unwrap();
        let key = ModelKey { name: config.name.clone(), version: ModelVersion::FIRST };
        ModelConfiguration::of(&key, &config, signature)
    }

    fn signature() -> Signature {
        let input = |name: &str, shape: Option<Vec<i64>>, is_batched: bool| InputSignature {
            name: name.into(),
            datatype: Some(DataType::Fp32),
            shape,
            is_optional: !is_batched,
            is_batched,
        };
        Signature {
            inputs: vec![
                input("x", Some(vec![-1, 3, 4]), true),
                input("scale", Some(vec![1]), false),
                input("z", None, true),
            ],
            outputs: vec![OutputSignature { name: "y".into(), datatype: None, shape: Some(vec![-1, 5]) }],
            are_outputs_known: true,
            max_batch_size: Some(8),
            ..Signature::default()
        }
    }

    #[test]
    fn shapes_stand_without_the_batch_dimension_where_there_is_one() {
        let batching = BatchingSpec { max_batch_size: 8, max_delay: None };
        let configuration_of_batch = configuration(Some(batching), &signature());
        let dims: Vec<_> = configuration_of_batch.inputs.iter().map(|input| input.dims.as_slice()).collect();
        assert_eq!(dims, [&[3, 4][..], &[1], &[-1]]);
        assert_eq!(configuration_of_batch.outputs[0].dims, [5]);
        assert_eq!((configuration_of_batch.max_batch_size, configuration_of_batch.instances), (8, 2));
        assert_eq!(configuration_of_batch.dynamic_batching, Some(DynamicBatching { max_queue_delay: Duration::ZERO }));

        let mut alone = signature();
        alone.max_batch_size = None;
        alone.inputs.iter_mut().for_each(|input| input.is_batched = false);
        let alone = configuration(None, &alone);
        assert_eq!((alone.max_batch_size, alone.dynamic_batching), (0, None));
        assert_eq!(
            (alone.inputs[0].dims.as_slice(), alone.outputs[0].dims.as_slice()),
            (&[-1, 3, 4][..], &[-1, 5][..])
        );
    }

    #[test]
    fn a_stateful_model_has_one_instance_and_joins_no_requests() {
        let stateful = Signature { is_stateful: true, max_batch_size: None, ..signature() };
        let batching = BatchingSpec { max_batch_size: 8, max_delay: None };
        let configuration = configuration(Some(batching), &stateful);
        assert_eq!((configuration.instances, configuration.dynamic_batching), (1, None));
    }
}
