//! Where a tensor's bytes lie, and who keeps them.
//!
//! Made by the protocols (host memory, pinned slabs) and, later, by engines and by shared-memory regions; an engine says what it
//! takes ([`crate::engine::Instance::accepts`]) and the scheduler refuses the rest. Invariant: the memory lives as long as any clone
//! of the value that names it.

use std::{any::Any, fmt, sync::Arc};

use bytes::Bytes;

/// The kinds of places where a tensor's bytes may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataLocation {
    /// The host's memory.
    Host,
    /// Host memory that a device reads and writes by itself.
    Pinned,
    /// A device's memory.
    Device,
    /// A region that another process shares with this one.
    Shared,
}

impl fmt::Display for DataLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host memory",
            Self::Pinned => "pinned host memory",
            Self::Device => "device memory",
            Self::Shared => "a shared-memory region",
        })
    }
}

/// A tensor's bytes, wherever they lie; row-major, little-endian, without padding.
#[derive(Clone, Debug)]
pub enum TensorData {
    /// In host memory.
    Host(Bytes),
    /// In host memory that is pinned: a device copies from it without a detour.
    Pinned(Bytes),
    /// In a device's memory.
    Device(DeviceData),
    /// In a region that another process shares.
    Shared(SharedData),
}

/// Bytes in a device's memory. Made by an engine; the memory goes back when the last clone is dropped.
#[derive(Clone)]
pub struct DeviceData {
    /// The device's name, as the engine writes it: `cuda:0`.
    pub device: Arc<str>,
    /// Bytes.
    pub size_bytes: usize,
    /// What the engine knows the memory by, and keeps it.
    pub handle: Arc<dyn Any + Send + Sync>,
}

/// A part of a region that another process shares. Made where regions are registered; the mapping stays until the last clone is
/// dropped.
#[derive(Clone)]
pub struct SharedData {
    /// The name under which the region was registered.
    pub region: Arc<str>,
    /// Where the part begins, in bytes.
    pub offset: usize,
    /// Bytes.
    pub size_bytes: usize,
    /// The mapping, which it keeps.
    pub mapping: Arc<dyn Any + Send + Sync>,
}

impl TensorData {
    /// Where the bytes lie.
    #[must_use]
    pub const fn location(&self) -> DataLocation {
        match self {
            Self::Host(_) => DataLocation::Host,
            Self::Pinned(_) => DataLocation::Pinned,
            Self::Device(_) => DataLocation::Device,
            Self::Shared(_) => DataLocation::Shared,
        }
    }

    /// How many bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Host(bytes) | Self::Pinned(bytes) => bytes.len(),
            Self::Device(data) => data.size_bytes,
            Self::Shared(data) => data.size_bytes,
        }
    }

    /// The bytes, where the host can read them as its own.
    #[must_use]
    pub const fn host(&self) -> Option<&Bytes> {
        match self {
            Self::Host(bytes) | Self::Pinned(bytes) => Some(bytes),
            Self::Device(_) | Self::Shared(_) => None,
        }
    }
}

impl From<Bytes> for TensorData {
    fn from(bytes: Bytes) -> Self {
        Self::Host(bytes)
    }
}

/// Host bytes are equal by content, other data only when they are the same memory.
impl PartialEq for TensorData {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Device(one), Self::Device(two)) => {
                Arc::ptr_eq(&one.handle, &two.handle) && one.size_bytes == two.size_bytes
            }
            (Self::Shared(one), Self::Shared(two)) => {
                Arc::ptr_eq(&one.mapping, &two.mapping) && (one.offset, one.size_bytes) == (two.offset, two.size_bytes)
            }
            _ => self.host().is_some() && self.host() == other.host(),
        }
    }
}

impl Eq for TensorData {}

impl fmt::Debug for DeviceData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceData({} bytes on {})", self.size_bytes, self.device)
    }
}

impl fmt::Debug for SharedData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedData({} bytes at {} of '{}')", self.size_bytes, self.offset, self.region)
    }
}
