//! What models there are and how they do, as gRPC messages: statistics, configuration and index.
//!
//! Called by `grpc`'s service. Invariant: the numbers are REST's.

use torchmodel_core::{
    configuration::{BACKEND, ModelConfiguration, PLATFORM, TensorConfiguration},
    repository::IndexEntry,
    statistics::{self, BatchStatistics},
};

use super::proto::{
    DataType, InferBatchStatistics, InferStatistics, ModelConfig, ModelDynamicBatching, ModelInput, ModelInstanceGroup,
    ModelOutput, ModelParameter, ModelStatistics, ModelTransactionPolicy, ModelVersionPolicy, StatisticDuration,
    model_config::SchedulingChoice,
    model_instance_group::Kind,
    model_version_policy::{All, PolicyChoice},
    repository_index_response::ModelIndex,
};

/// One row of the index.
pub(super) fn encode_index(entry: &IndexEntry) -> ModelIndex {
    ModelIndex {
        name: entry.key.name.to_string(),
        version: entry.key.version.to_string(),
        state: entry.state.as_str().to_owned(),
        reason: entry.state.reason(),
    }
}

/// What one version has done.
pub(super) fn encode_statistics(statistics: &statistics::ModelStatistics) -> ModelStatistics {
    let stages = &statistics.inference_stats;
    ModelStatistics {
        name: statistics.key.name.to_string(),
        version: statistics.key.version.to_string(),
        last_inference: statistics.last_inference_ms,
        inference_count: statistics.inference_count,
        execution_count: statistics.execution_count,
        inference_stats: Some(InferStatistics {
            success: duration(stages.success),
            fail: duration(stages.fail),
            queue: duration(stages.queue),
            compute_input: duration(stages.compute_input),
            compute_infer: duration(stages.compute_infer),
            compute_output: duration(stages.compute_output),
            cache_hit: duration(statistics::StatisticDuration::default()),
            cache_miss: duration(statistics::StatisticDuration::default()),
        }),
        batch_stats: statistics.batch_stats.iter().map(batch).collect(),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the form of a message's field")]
fn duration(duration: statistics::StatisticDuration) -> Option<StatisticDuration> {
    Some(StatisticDuration { count: duration.count, ns: duration.ns() })
}

fn batch(batch: &BatchStatistics) -> InferBatchStatistics {
    InferBatchStatistics {
        batch_size: batch.batch_size,
        compute_input: duration(batch.compute_input),
        compute_infer: duration(batch.compute_infer),
        compute_output: duration(batch.compute_output),
    }
}

/// How a version is served.
pub(super) fn encode_configuration(configuration: ModelConfiguration) -> ModelConfig {
    let max_batch_size = saturated(configuration.max_batch_size);
    let data_type =
        |tensor: &TensorConfiguration| DataType::from_str_name(&tensor.type_name()).unwrap_or_default().into();
    let inputs = configuration.inputs.into_iter().map(|input| ModelInput {
        data_type: data_type(&input),
        name: input.name,
        dims: input.dims,
        optional: input.is_optional,
    });
    let outputs = configuration.outputs.into_iter().map(|output| ModelOutput {
        data_type: data_type(&output),
        name: output.name,
        dims: output.dims,
    });
    let batching = configuration.dynamic_batching.map(|batching| ModelDynamicBatching {
        preferred_batch_size: vec![max_batch_size],
        max_queue_delay_microseconds: u64::try_from(batching.max_queue_delay.as_micros()).unwrap_or(u64::MAX),
        preserve_ordering: false,
    });
    let parameters = configuration.parameters.into_iter();
    ModelConfig {
        platform: PLATFORM.to_owned(),
        version_policy: Some(ModelVersionPolicy { policy_choice: Some(PolicyChoice::All(All {})) }),
        max_batch_size,
        input: inputs.collect(),
        output: outputs.collect(),
        instance_group: vec![ModelInstanceGroup {
            name: format!("{}_0", configuration.name),
            count: saturated(configuration.instances as u64),
            kind: Kind::Auto.into(),
        }],
        scheduling_choice: batching.map(SchedulingChoice::DynamicBatching),
        parameters: parameters.map(|(key, string_value)| (key, ModelParameter { string_value })).collect(),
        backend: BACKEND.to_owned(),
        model_transaction_policy: Some(ModelTransactionPolicy { decoupled: false }),
        name: configuration.name.to_string(),
    }
}

fn saturated(number: u64) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use torchmodel_core::tensor;

    use super::*;

    #[test]
    fn every_datatype_has_its_name_in_the_configuration() {
        let names = [
            "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32",
            "FP64", "BYTES",
        ];
        for name in names {
            let datatype = <tensor::DataType as tensor::DataTypeExt>::parse(name);
            assert!(datatype.is_some(), "{name}");
            let tensor = TensorConfiguration { name: "x".into(), datatype, dims: vec![], is_optional: false };
            let number = DataType::from_str_name(&tensor.type_name());
            assert!(number.is_some_and(|number| number != DataType::TypeInvalid), "{name}");
        }
    }
}
