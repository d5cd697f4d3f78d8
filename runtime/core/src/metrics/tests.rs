//! Tests of the table, the closed labels, registration and the guards.

use super::*;
use crate::model_key::ModelVersion;

fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

fn key(text: &str) -> ModelKey {
    ModelKey { name: name(text), version: ModelVersion::FIRST }
}

#[test]
fn every_metric_of_the_table_is_told_with_its_labels() {
    let metrics = Metrics::new();
    let registered = metrics.register(key("m"));
    let model = registered.handle();
    model.record_success(&RequestTimings { rows: 3, queue: Duration::from_millis(2), ..Default::default() });
    model.record_failure(Outcome::Overloaded, Duration::from_millis(1));
    let timings = ExecutionTimings { compute_infer: Duration::from_millis(5), ..Default::default() };
    model.record_execution(3, &timings, 1);
    model.set_ready(true);
    metrics.record_receive(Protocol::Grpc, Duration::from_millis(1));
    drop(metrics.send_timer(Protocol::Rest));
    let text = metrics.encode();
    for metric in TABLE {
        let described = metric.name.strip_suffix("_total").unwrap_or(metric.name);
        assert!(text.contains(&format!("# TYPE {described} ")), "{}", metric.name);
        let sample = text
            .lines()
            .find(|line| line.starts_with(metric.name) && !line.starts_with('#'))
            .unwrap_or_else(|| panic!("{} has no sample", metric.name));
        for label in metric.labels {
            assert!(sample.contains(&format!("{label}=\"")), "{sample} lacks {label}");
        }
    }
    for line in [
        "# TYPE torchmodel_request counter",
        "# TYPE nv_inference_count unknown",
        "nv_inference_count{model=\"m\",version=\"1\"} 3",
        "nv_inference_request_failure{model=\"m\",version=\"1\",reason=\"REJECTED\"} 1",
        "nv_inference_queue_duration_us{model=\"m\",version=\"1\"} 2000",
        "torchmodel_instance_busy_seconds_total{model=\"m\",version=\"1\"} 0.005",
        "torchmodel_batch_size_bucket{le=\"2.0\",model=\"m\",version=\"1\"} 0",
        "torchmodel_batch_size_bucket{le=\"4.0\",model=\"m\",version=\"1\"} 1",
        "torchmodel_batch_size_bucket{le=\"+Inf\",model=\"m\",version=\"1\"} 1",
        "torchmodel_batch_size_sum{model=\"m\",version=\"1\"} 3.0",
        "torchmodel_request_receive_duration_seconds_count{protocol=\"grpc\"} 1",
        "torchmodel_request_send_duration_seconds_count{protocol=\"rest\"} 1",
    ] {
        assert!(text.lines().any(|told| told == line), "{line} is not in {text}");
    }
}

#[test]
fn a_name_that_is_not_served_never_becomes_a_label() {
    let metrics = Metrics::new();
    let _model = metrics.register(key("m"));
    metrics.record_response(Protocol::Rest, Some(&name("m")), Outcome::Ok, Duration::ZERO);
    metrics.record_response(Protocol::Rest, Some(&name("invented")), Outcome::NotFound, Duration::ZERO);
    metrics.record_response(Protocol::Grpc, None, Outcome::Canceled, Duration::ZERO);
    let text = metrics.encode();
    assert!(!text.contains("invented"));
    for line in [
        "torchmodel_request_total{model=\"m\",protocol=\"rest\",code=\"ok\"} 1\n",
        "torchmodel_request_total{model=\"\",protocol=\"rest\",code=\"not_found\"} 1\n",
        "torchmodel_request_total{model=\"\",protocol=\"grpc\",code=\"canceled\"} 1\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn a_request_is_in_flight_until_its_guard_is_dropped() {
    let metrics = Metrics::new();
    let registered = metrics.register(key("m"));
    let guard = registered.handle().inflight_guard();
    assert!(metrics.encode().contains("torchmodel_inflight_requests{model=\"m\",version=\"1\"} 1\n"));
    drop(guard);
    assert!(metrics.encode().contains("torchmodel_inflight_requests{model=\"m\",version=\"1\"} 0\n"));
}

#[test]
fn a_version_is_told_until_its_last_owner_is_gone_and_owners_share_its_numbers() {
    let metrics = Metrics::new();
    let (old, new) = (metrics.register(key("m")), metrics.register(key("m")));
    old.handle().record_success(&RequestTimings { rows: 2, ..Default::default() });
    drop(old);
    new.handle().record_success(&RequestTimings { rows: 1, ..Default::default() });
    assert!(metrics.encode().contains("nv_inference_count{model=\"m\",version=\"1\"} 3\n"));
    drop(new);
    assert!(!metrics.encode().contains("model=\"m\""));
}

#[test]
fn label_values_are_escaped() {
    let metrics = Metrics::new();
    let _registered = metrics.register(key("a\"b\\c\nd"));
    assert!(metrics.encode().contains("torchmodel_instances{model=\"a\\\"b\\\\c\\nd\",version=\"1\"} 0\n"));
}

#[test]
fn statistics_are_what_was_recorded() {
    let metrics = Metrics::new();
    let registered = metrics.register(key("m"));
    let model = registered.handle();
    let ms = Duration::from_millis;
    let timings = RequestTimings { total: ms(9), queue: ms(1), compute_infer: ms(5), rows: 2, ..Default::default() };
    model.record_success(&timings);
    model.record_success(&timings);
    model.record_failure(Outcome::Internal, ms(4));
    model.record_execution(4, &ExecutionTimings { compute_infer: ms(5), ..Default::default() }, 2);
    let statistics = model.statistics(key("m"));
    assert_eq!((statistics.inference_count, statistics.execution_count), (4, 1));
    let stages = statistics.inference_stats;
    assert_eq!((stages.success.count, stages.success.ns()), (2, 18_000_000));
    assert_eq!((stages.fail.count, stages.fail.ns()), (1, 4_000_000));
    assert_eq!((stages.queue.ns(), stages.compute_infer.ns()), (2_000_000, 10_000_000));
    let sizes: Vec<_> = statistics.batch_stats.iter().map(|size| (size.batch_size, size.compute_infer.count)).collect();
    assert_eq!(sizes, [(4, 1)]);
    assert!(statistics.last_inference_ms > 1_700_000_000_000);
}
