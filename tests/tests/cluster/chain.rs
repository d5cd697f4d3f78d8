//! The whole chain: the example's manifest as it stands in the repository, a real model from S3, real answers.

use anyhow::Result;
use torchmodel_testing::TestTensor;
use torchmodel_tests::{Namespace, PATIENCE, direct_call, recording};

const RATE: i64 = 16_000;

pub async fn the_example_answers_as_a_direct_call_does_over_both_protocols(namespace: Namespace<'_>) -> Result<()> {
    namespace.kubectl(&["apply", "-f", "examples/silero-vad.yaml"]).await?;
    let ready = format!("--timeout={}s", PATIENCE.as_secs());
    namespace.kubectl(&["wait", "--for=condition=Ready", "torchmodel/silero-vad", &ready]).await?;
    let (rest, grpc) = (namespace.rest("silero-vad").await?, namespace.grpc("silero-vad").await?);
    assert!(grpc.is_ready("silero-vad").await?);
    for (file, windows, highest, average) in [("Front_Center.wav", 44, 0.99999, 0.720), ("Noise.wav", 43, 0.032, 0.013)]
    {
        let audio = recording(file)?;
        let expected = direct_call("target/demo/silero_vad.jit", "audio_forward", &audio, RATE)?;
        let inputs =
            [TestTensor::fp32("x", &[1, i64::try_from(audio.len())?], &audio), TestTensor::int64("sr", &[1], &[RATE])];
        let answers = [
            ("REST, JSON", rest.infer("silero-vad", &inputs).await?),
            ("REST, binary", rest.infer_binary("silero-vad", &inputs).await?),
            ("gRPC", grpc.infer("silero-vad", &inputs).await?),
        ];
        for (protocol, answer) in answers {
            assert_eq!(bits(&answer), bits(&expected), "{file} over {protocol}");
        }
        assert_eq!(expected.len(), windows, "{file}");
        let max = expected.iter().copied().map(f64::from).fold(0.0, f64::max);
        let mean = expected.iter().copied().map(f64::from).sum::<f64>() / f64::from(u32::try_from(windows)?);
        assert!((max - highest).abs() < 5e-4 && (mean - average).abs() < 5e-4, "{file}: highest {max}, mean {mean}");
    }
    let (status, metadata) = rest.get("/v2/models/silero-vad").await?;
    assert!(status == 200 && metadata.contains("\"speech\""), "{metadata}");
    namespace.kubectl(&["delete", "-f", "examples/silero-vad.yaml"]).await?;
    Ok(())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
