//! What libtorch answers when it is called directly, in this process.

use std::path::Path;

use anyhow::{Result, bail};
use tch::{CModule, IValue, Tensor};

use crate::command::root;

/// Calls `method` of the archive (a path in the repository) with samples of shape `[1, n]` and a rate; FP32 values.
pub fn direct_call(archive: &str, method: &str, samples: &[f32], rate: i64) -> Result<Vec<f32>> {
    let module = CModule::load(root().join(Path::new(archive)))?;
    let x = Tensor::from_slice(samples).unsqueeze(0);
    let IValue::Tensor(answer) = module.method_is(method, &[IValue::Tensor(x), IValue::Int(rate)])? else {
        bail!("{method} answered with something other than a tensor");
    };
    Ok(Vec::<f32>::try_from(answer.flatten(0, -1))?)
}
