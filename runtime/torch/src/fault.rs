//! Whose fault it is when libtorch fails: the client's, the model's, or the device's.
//!
//! [`refuses`] is pure and table-tested; [`FaultContext`] asks the device first. Invariants: only what the model raises, what its
//! schema refuses and what a refusing operator could only have had from the request's own form or values is the client's fault; a
//! device that is lost is told as lost whatever the exception's text says.

use torch_shim::{TorchError, TorchErrorKind};
use torchmodel_core::{binding::Binding, engine::EngineError, freedom::InputFreedom};

use crate::convert::ConvertError;

/// Where something failed.
pub struct FaultContext<'a> {
    /// The device that it ran on.
    pub device: tch::Device,
    /// How requests reach the method.
    pub binding: &'a Binding,
}

impl FaultContext<'_> {
    /// A call of the method failed.
    pub fn of_call(&self, error: &TorchError) -> EngineError {
        if let Some(error) = self.of_hardware(error) {
            return error;
        }
        let sentence = error.sentence();
        let freedom = InputFreedom::of(self.binding.signature());
        if !refuses(error.kind, freedom) {
            return self.of_model(error);
        }
        let is_form = !matches!(error.kind, TorchErrorKind::Raised | TorchErrorKind::Argument);
        EngineError::Refused(if is_form && freedom.is_undeclared {
            format!("{sentence}; declare datatype and shape in model.inputs to have requests checked before they run")
        } else {
            sentence.to_owned()
        })
    }

    /// An argument or an output could not be carried over.
    pub fn of_conversion(&self, error: ConvertError) -> EngineError {
        match error {
            ConvertError::Refused(message) => EngineError::Refused(message),
            ConvertError::Failed(message) => EngineError::Failed(message),
            // On a device this is where the failure of a kernel shows, long after its call.
            ConvertError::Torch(error) => self.of_hardware(&error).unwrap_or_else(|| self.of_model(&error)),
        }
    }

    fn of_hardware(&self, error: &TorchError) -> Option<EngineError> {
        if torch_shim::is_device_lost(self.device) {
            return Some(EngineError::DeviceLost(error.sentence().to_owned()));
        }
        (error.kind == TorchErrorKind::OutOfMemory).then(|| EngineError::OutOfMemory(error.sentence().to_owned()))
    }

    fn of_model(&self, error: &TorchError) -> EngineError {
        tracing::error!(method = self.binding.method().name, "the model failed: {}", error.message);
        EngineError::Failed(error.sentence().to_owned())
    }
}

/// Whether a fault of `kind` is the client's, who may choose what `freedom` leaves open.
fn refuses(kind: TorchErrorKind, freedom: InputFreedom) -> bool {
    match kind {
        TorchErrorKind::Raised | TorchErrorKind::Argument => true,
        TorchErrorKind::Datatype => freedom.datatypes,
        // A number in the request can become a size, and a longer input reach beyond a table.
        TorchErrorKind::Shape | TorchErrorKind::Index => freedom.shapes || freedom.values,
        TorchErrorKind::Torch
        | TorchErrorKind::OutOfMemory
        | TorchErrorKind::Device
        | TorchErrorKind::Archive
        | TorchErrorKind::Operator
        | TorchErrorKind::Version => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_the_clients_only_where_the_client_had_a_choice() {
        use TorchErrorKind::{Argument, Datatype, Device, Index, Raised, Shape, Torch};
        let fixed = InputFreedom { datatypes: false, shapes: false, values: false, is_undeclared: false };
        let open = InputFreedom { datatypes: true, shapes: true, values: true, is_undeclared: true };
        let [datatypes, shapes, values] = [
            InputFreedom { datatypes: true, ..fixed },
            InputFreedom { shapes: true, ..fixed },
            InputFreedom { values: true, ..fixed },
        ];
        for (kind, freedom, expected) in [
            (Raised, fixed, true),
            (Argument, fixed, true),
            (Datatype, fixed, false),
            (Datatype, datatypes, true),
            (Datatype, shapes, false),
            (Shape, fixed, false),
            (Shape, shapes, true),
            (Shape, values, true),
            (Shape, datatypes, false),
            (Index, fixed, false),
            (Index, values, true),
            (Index, shapes, true),
            (Torch, open, false),
            (Device, open, false),
        ] {
            assert_eq!(refuses(kind, freedom), expected, "{kind:?} {freedom:?}");
        }
    }
}
