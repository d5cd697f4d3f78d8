//! The cases of `wire`: which loads stand in the table, and in which order.
//!
//! Invariant: sizes ascend within a model, since what a server has held once its allocator may keep.

use crate::{load::Load, request::Wire, tensor::Model};

/// What the name of a case whose client announces compression ends with.
pub const ANNOUNCING: &str = ", announcing deflate";
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Connections of the cases that compare sizes.
const CONNECTIONS: usize = 4;
/// Connections of the cases that measure throughput.
const MANY_CONNECTIONS: usize = 16;

/// One row of the table for each server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What the table calls it.
    pub name: String,
    /// What is measured.
    pub load: Load,
}

impl Case {
    fn new(load: Load) -> Self {
        let Load { model, wire, size_bytes, connections, is_announcing_compression } = load;
        let what = match model {
            Model::Echo => "echo",
            Model::FirstElement => "one element",
            Model::AddSub => "add_sub",
        };
        let size = match size_bytes {
            _ if model == Model::AddSub => String::new(),
            bytes if bytes >= MIB => format!(", {} MiB", bytes / MIB),
            bytes => format!(", {} KiB", bytes / KIB),
        };
        let announced = if is_announcing_compression { ANNOUNCING } else { "" };
        Self { name: format!("{what}, {}{size}, {connections} conn{announced}", wire.as_str()), load }
    }
}

/// Every case, those of one model together.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut loads = Vec::new();
    let load = |model, wire, size_bytes, connections| Load {
        model,
        wire,
        size_bytes,
        connections,
        is_announcing_compression: false,
    };
    for size_bytes in [KIB, 64 * KIB, 4 * MIB] {
        for wire in [Wire::GrpcRaw, Wire::RestBinary, Wire::RestJson] {
            loads.push(load(Model::Echo, wire, size_bytes, CONNECTIONS));
        }
    }
    let plain = load(Model::Echo, Wire::GrpcRaw, 4 * MIB, 1);
    loads.extend([plain, Load { is_announcing_compression: true, ..plain }]);
    loads.push(load(Model::Echo, Wire::RestBinaryToJson, 4 * MIB, CONNECTIONS));
    for size_bytes in [MIB, 4 * MIB] {
        for wire in [Wire::GrpcRaw, Wire::RestBinary] {
            loads.push(load(Model::Echo, wire, size_bytes, MANY_CONNECTIONS));
        }
    }
    for wire in [Wire::GrpcRaw, Wire::RestBinary, Wire::RestJson] {
        loads.push(load(Model::Echo, wire, 64 * MIB, CONNECTIONS));
    }
    for size_bytes in [MIB, 4 * MIB] {
        for wire in [Wire::GrpcRaw, Wire::RestBinary] {
            loads.push(load(Model::FirstElement, wire, size_bytes, MANY_CONNECTIONS));
        }
    }
    loads.push(load(Model::FirstElement, Wire::RestJson, 4 * MIB, CONNECTIONS));
    for (wire, connections) in
        [(Wire::GrpcRaw, 1), (Wire::GrpcRaw, MANY_CONNECTIONS), (Wire::RestBinary, 1), (Wire::RestJson, 1)]
    {
        loads.push(load(Model::AddSub, wire, 0, connections));
    }
    loads.into_iter().map(Case::new).collect()
}

/// The connections that are open, over each protocol, while a server's rest is measured.
#[must_use]
pub const fn idle_loads() -> [Load; 2] {
    let base = Load {
        model: Model::Echo,
        wire: Wire::GrpcRaw,
        size_bytes: KIB,
        connections: MANY_CONNECTIONS,
        is_announcing_compression: false,
    };
    [base, Load { wire: Wire::RestBinary, ..base }]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_cases_have_one_name() {
        let cases = cases();
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
        assert!(names.contains("echo, REST JSON, 64 MiB, 4 conn") && names.contains("add_sub, gRPC raw, 16 conn"));
    }
}
