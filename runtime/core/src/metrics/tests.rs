//! Tests of the table, the closed labels and the guards.

use super::*;

fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

#[test]
fn every_metric_of_the_table_is_told_with_its_labels() {
    let metrics = Metrics::new();
    let model = metrics.model(&name("m"), ModelVersion::FIRST);
    model.record_request(Ok(&RequestTimings { rows: 3, queue: Duration::from_millis(2), ..Default::default() }));
    model.record_request(Err(Outcome::Overloaded));
    let timings = ExecutionTimings { compute_infer: Duration::from_millis(5), ..Default::default() };
    model.record_execution(3, &timings, 1);
    model.set_ready(true);
    let text = metrics.encode();
    for metric in TABLE {
        assert!(text.contains(&format!("# TYPE {} {}\n", metric.name, metric.kind.as_str())), "{}", metric.name);
        let sample = text
            .lines()
            .find(|line| line.starts_with(metric.name) && !line.starts_with('#'))
            .unwrap_or_else(|| panic!("{} has no sample", metric.name));
        for label in metric.labels {
            assert!(sample.contains(&format!("{label}=\"")), "{sample} lacks {label}");
        }
    }
    assert!(text.contains("nv_inference_count{model=\"m\",version=\"1\"} 3\n"), "{text}");
    assert!(text.contains("nv_inference_request_failure{model=\"m\",version=\"1\",reason=\"REJECTED\"} 1\n"));
    assert!(text.contains("nv_inference_queue_duration_us{model=\"m\",version=\"1\"} 2000\n"));
    assert!(text.contains("torchmodel_instance_busy_seconds_total{model=\"m\",version=\"1\"} 0.005\n"));
}

#[test]
fn a_name_that_is_not_served_never_becomes_a_label() {
    let metrics = Metrics::new();
    let _model = metrics.model(&name("m"), ModelVersion::FIRST);
    metrics.record_response(Protocol::Rest, Some(&name("m")), Outcome::Ok, Duration::ZERO);
    metrics.record_response(Protocol::Rest, Some(&name("invented")), Outcome::NotFound, Duration::ZERO);
    metrics.record_response(Protocol::Grpc, None, Outcome::Canceled, Duration::ZERO);
    let text = metrics.encode();
    assert!(!text.contains("invented"));
    assert!(text.contains("torchmodel_request_total{model=\"m\",protocol=\"rest\",code=\"ok\"} 1\n"), "{text}");
    assert!(text.contains("torchmodel_request_total{model=\"\",protocol=\"rest\",code=\"not_found\"} 1\n"));
    assert!(text.contains("torchmodel_request_total{model=\"\",protocol=\"grpc\",code=\"canceled\"} 1\n"));
}

#[test]
fn a_request_is_in_flight_until_its_guard_is_dropped() {
    let metrics = Metrics::new();
    let guard = metrics.model(&name("m"), ModelVersion::FIRST).inflight_guard();
    assert!(metrics.encode().contains("torchmodel_inflight_requests{model=\"m\",version=\"1\"} 1\n"));
    drop(guard);
    assert!(metrics.encode().contains("torchmodel_inflight_requests{model=\"m\",version=\"1\"} 0\n"));
}
