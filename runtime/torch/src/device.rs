//! Which devices a model is loaded onto.
//!
//! CUDA's libraries are looked for beside the program's own; where they are not, or no device answers, the CPU serves. Invariant:
//! `auto` never fails, a device that was named and is not there does.

use std::path::PathBuf;

use torchmodel_crds::{Failure, FailurePhase, FailureReason};

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// Every CUDA device that is visible, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// Every CUDA device that is visible.
    EveryCuda,
    /// One CUDA device.
    Cuda(usize),
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::EveryCuda),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("'{text}' is not a device: use auto, cpu, cuda or cuda:N")),
        }
    }
}

/// A device's name as libtorch writes it.
pub fn name(device: tch::Device) -> String {
    match device {
        tch::Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// The devices that `choice` means here. Call it before anything else of libtorch.
pub fn devices(choice: DeviceChoice) -> Result<Vec<tch::Device>, Failure> {
    if choice == DeviceChoice::Cpu {
        return Ok(vec![tch::Device::Cpu]);
    }
    let loaded = load();
    let count = if loaded.is_ok() { usize::try_from(tch::Cuda::device_count()).unwrap_or(0) } else { 0 };
    let missing = |name: String, why: String| {
        Failure::new(FailurePhase::Load, FailureReason::DriverTooOld, format!("no device {name}: {why}"))
    };
    let why = |loaded: Result<(), String>| loaded.err().unwrap_or_else(|| format!("the driver shows {count} devices"));
    match choice {
        DeviceChoice::Cuda(index) if index < count => Ok(vec![tch::Device::Cuda(index)]),
        DeviceChoice::Cuda(index) => Err(missing(format!("cuda:{index}"), why(loaded))),
        DeviceChoice::EveryCuda if count == 0 => Err(missing("cuda".to_owned(), why(loaded))),
        DeviceChoice::Auto | DeviceChoice::Cpu if count == 0 => {
            match loaded {
                Ok(()) => tracing::warn!("CUDA is installed but the driver shows no device: serving on the CPU"),
                Err(why) => tracing::debug!(why, "no CUDA: serving on the CPU"),
            }
            Ok(vec![tch::Device::Cpu])
        }
        DeviceChoice::Auto | DeviceChoice::Cpu | DeviceChoice::EveryCuda => {
            Ok((0..count).map(tch::Device::Cuda).collect())
        }
    }
}

/// Loads CUDA's part of libtorch from beside the program's own libraries, else from where the system looks.
fn load() -> Result<(), String> {
    let beside = std::env::current_exe().ok().and_then(|program| {
        let folder: PathBuf = program.parent()?.parent()?.join("lib");
        folder.join("libtorch_cuda.so").exists().then_some(folder)
    });
    torch_shim::load_cuda(beside.as_deref()).map_err(|error| match beside {
        Some(_) => error,
        None => format!("there are no CUDA libraries here (in a pod: use the runtime-cuda image): {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_names_that_people_know() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::EveryCuda));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        assert!("gpu".parse::<DeviceChoice>().unwrap_err().contains("cuda:N"));
    }
}
