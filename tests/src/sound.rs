//! The recordings of the demo, as Silero VAD takes them.

use anyhow::{Context as _, Result};

use crate::command::root;

/// Samples that the model answers with one probability.
const WINDOW: usize = 512;

/// Samples between -1 and 1 of a 48 kHz mono recording in `target/demo`, every three averaged to one at 16 kHz, cut to whole
/// windows; the same arithmetic as in `examples/silero_vad.py`.
pub fn recording(name: &str) -> Result<Vec<f32>> {
    let path = root().join("target/demo").join(name);
    let wav = std::fs::read(&path).with_context(|| format!("reading {}; run `make demo-files`", path.display()))?;
    let data = wav.windows(4).position(|tag| tag == b"data").context("no samples in the recording")? + 8;
    let samples: Vec<f32> =
        wav[data..].as_chunks::<2>().0.iter().map(|bytes| f32::from(i16::from_le_bytes(*bytes))).collect();
    let mut thirds: Vec<f32> =
        samples.as_chunks::<3>().0.iter().map(|third| third.iter().sum::<f32>() / 3.0 / 32768.0).collect();
    thirds.truncate(thirds.len() / WINDOW * WINDOW);
    Ok(thirds)
}
