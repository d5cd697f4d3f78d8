//! Host memory for tensors on their way in and out: aligned, already touched, used again.
//!
//! Protocols take a [`SlabMut`] from the one [`SlabPool`] of the process, write each payload byte once and freeze it to `Bytes`; the
//! buffer returns to the pool when the last slice of it is gone. Fresh pages for each body were the largest cost of the wire.
//! Invariants: a slab begins at a multiple of [`ALIGNMENT`]; idle buffers never exceed the pool's maximum, and those that nobody
//! needed between two calls of [`SlabPool::trim`] are given back to the system.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// Where a slab's bytes begin: at a multiple of this, a cache line and the widest vector of today's CPUs.
pub const ALIGNMENT: usize = 64;

/// Slabs up to this are allocations of their own that are not kept.
const MAX_PLAIN_BYTES: usize = 4 << 10;
/// The smallest class of pooled buffers, a power of two.
const MIN_CLASS_BYTES: usize = 8 << 10;
/// Classes between a power of two and the next: a buffer is at most a quarter larger than what was asked for.
const STEPS: usize = 4;
/// Largest number of classes: from 8 KiB to 1 TiB.
const CLASSES: usize = 27 * STEPS + 1;

/// Memory that an engine provides, such as one pinned for a device.
pub trait SlabMemory: Send + Sync {
    /// The whole buffer.
    fn as_slice(&self) -> &[u8];
    /// The whole buffer, to write.
    fn as_mut_slice(&mut self) -> &mut [u8];
}

/// Where a pool's buffers come from.
pub trait SlabAllocator: Send + Sync {
    /// A buffer of at least `capacity_bytes`; `None` where there is no more of this kind, and the heap serves instead.
    fn allocate(&self, capacity_bytes: usize) -> Option<Box<dyn SlabMemory>>;
}

/// A buffer: of the heap, or of an engine's allocator.
enum Memory {
    Heap(Vec<u8>),
    Provided(Box<dyn SlabMemory>),
}

impl Memory {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Provided(memory) => memory.as_slice(),
        }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Provided(memory) => memory.as_mut_slice(),
        }
    }
}

/// The buffers of one size.
#[derive(Default)]
struct Class {
    idle: Vec<Memory>,
    /// The fewest that were idle since the last trim: so many were not needed.
    fewest_idle: usize,
}

struct State {
    classes: Vec<Class>,
    idle_bytes: usize,
}

struct Shared {
    max_idle_bytes: usize,
    allocator: Option<Box<dyn SlabAllocator>>,
    state: Mutex<State>,
    became_idle: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No holder of the lock leaves it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, class: usize, memory: Memory) {
        let bytes = class_bytes(class);
        let mut state = self.lock();
        let idle_bytes = state.idle_bytes.saturating_add(bytes);
        if idle_bytes > self.max_idle_bytes {
            return; // `memory` goes back to the system, after the lock
        }
        let Some(slot) = state.classes.get_mut(class) else { return };
        slot.idle.push(memory);
        let is_first = std::mem::replace(&mut state.idle_bytes, idle_bytes) == 0;
        drop(state);
        if is_first {
            self.became_idle.notify_one();
        }
    }
}

/// The process's buffers; cheap to clone.
#[derive(Clone)]
pub struct SlabPool {
    shared: Arc<Shared>,
}

impl fmt::Debug for SlabPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SlabPool").field("idle_bytes", &self.idle_bytes()).finish_non_exhaustive()
    }
}

impl SlabPool {
    /// A pool that keeps at most `max_idle_bytes` for later use.
    #[must_use]
    pub fn new(max_idle_bytes: usize) -> Self {
        Self::build(max_idle_bytes, None)
    }

    /// A pool whose buffers come from `allocator`.
    #[must_use]
    pub fn with_allocator(max_idle_bytes: usize, allocator: Box<dyn SlabAllocator>) -> Self {
        Self::build(max_idle_bytes, Some(allocator))
    }

    fn build(max_idle_bytes: usize, allocator: Option<Box<dyn SlabAllocator>>) -> Self {
        let classes = (0..CLASSES).map(|_| Class::default()).collect();
        let state = Mutex::new(State { classes, idle_bytes: 0 });
        Self { shared: Arc::new(Shared { max_idle_bytes, allocator, state, became_idle: Notify::new() }) }
    }

    /// An empty slab for exactly up to `capacity_bytes`. What a client claims must have been admitted before.
    #[must_use]
    pub fn take(&self, capacity_bytes: usize) -> SlabMut {
        let class = (capacity_bytes > MAX_PLAIN_BYTES).then(|| class_of(capacity_bytes)).flatten();
        let memory = class.and_then(|class| self.idle(class));
        let memory = memory.unwrap_or_else(|| match class {
            Some(class) => self.allocate(class_bytes(class)),
            None => Memory::Heap(vec![0; capacity_bytes.saturating_add(ALIGNMENT)]),
        });
        let start = memory.as_slice().as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let pool = class.map(|class| (Arc::clone(&self.shared), class));
        SlabMut { buffer: Buffer { memory: Some(memory), pool }, start, length: 0, capacity_bytes }
    }

    fn idle(&self, class: usize) -> Option<Memory> {
        let mut state = self.shared.lock();
        let slot = state.classes.get_mut(class)?;
        let memory = slot.idle.pop()?;
        slot.fewest_idle = slot.fewest_idle.min(slot.idle.len());
        state.idle_bytes = state.idle_bytes.saturating_sub(class_bytes(class));
        Some(memory)
    }

    fn allocate(&self, capacity_bytes: usize) -> Memory {
        let padded = capacity_bytes.saturating_add(ALIGNMENT);
        let provided = self.shared.allocator.as_ref().and_then(|allocator| allocator.allocate(padded));
        provided.filter(|memory| memory.as_slice().len() >= padded).map_or_else(
            // Large ones are zero pages of the system's, which nobody writes twice.
            || Memory::Heap(vec![0; padded]),
            Memory::Provided,
        )
    }

    /// Bytes of buffers that wait to be used again.
    #[must_use]
    pub fn idle_bytes(&self) -> usize {
        self.shared.lock().idle_bytes
    }

    /// Gives back to the system what was idle since the last call. Whoever owns the pool calls it every few seconds.
    pub fn trim(&self) {
        self.free(|class| std::mem::replace(&mut class.fewest_idle, usize::MAX).min(class.idle.len()));
    }

    /// Gives idle buffers back to the system until at most `bytes` are left.
    pub fn shrink_to(&self, bytes: usize) {
        let mut surplus = self.idle_bytes().saturating_sub(bytes);
        let mut class_index = 0;
        self.free(|class| {
            let each = class_bytes(class_index);
            class_index += 1;
            let count = surplus.div_ceil(each).min(class.idle.len());
            surplus = surplus.saturating_sub(count.saturating_mul(each));
            count
        });
    }

    /// Completes when a buffer became idle in a pool without idle ones: from then on [`Self::trim`] has work.
    pub async fn became_idle(&self) {
        self.shared.became_idle.notified().await;
    }

    /// Frees as many of each class as `count` says.
    fn free(&self, mut count: impl FnMut(&mut Class) -> usize) {
        let mut freed = Vec::new();
        let mut state = self.shared.lock();
        let mut freed_bytes = 0usize;
        for (index, class) in state.classes.iter_mut().enumerate() {
            let count = count(class).min(class.idle.len());
            freed_bytes = freed_bytes.saturating_add(count.saturating_mul(class_bytes(index)));
            // The oldest: the last ones used are in the CPU's cache.
            freed.extend(class.idle.drain(..count));
            class.fewest_idle = class.fewest_idle.min(class.idle.len());
        }
        state.idle_bytes = state.idle_bytes.saturating_sub(freed_bytes);
        drop(state);
        drop(freed);
    }
}

/// Position of the class for that many bytes; `None` beyond the largest.
fn class_of(bytes: usize) -> Option<usize> {
    let units = bytes.max(MIN_CLASS_BYTES);
    let power = units.ilog2();
    let step = (1usize << power) / STEPS;
    let above = units.checked_sub(1 << power)?.div_ceil(step);
    let doublings = usize::try_from(power.checked_sub(MIN_CLASS_BYTES.ilog2())?).ok()?;
    let class = doublings.checked_mul(STEPS)?.checked_add(above)?;
    (class < CLASSES).then_some(class)
}

/// Bytes of a class's buffers.
fn class_bytes(class: usize) -> usize {
    let base = MIN_CLASS_BYTES << (class / STEPS);
    base + base / STEPS * (class % STEPS)
}

/// Memory on loan from a pool.
struct Buffer {
    /// `None` only while it is dropped.
    memory: Option<Memory>,
    pool: Option<(Arc<Shared>, usize)>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let (Some(memory), Some((pool, class))) = (self.memory.take(), self.pool.take()) {
            pool.give_back(class, memory);
        }
    }
}

/// A slab that is being filled: made by [`SlabPool::take`], filled by one writer, ended by [`SlabMut::freeze`].
pub struct SlabMut {
    buffer: Buffer,
    start: usize,
    length: usize,
    capacity_bytes: usize,
}

impl fmt::Debug for SlabMut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { length, capacity_bytes, .. } = self;
        formatter.debug_struct("SlabMut").field("len", length).field("capacity_bytes", capacity_bytes).finish()
    }
}

impl SlabMut {
    /// Bytes written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes that may still be written.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.capacity_bytes.saturating_sub(self.length)
    }

    /// What is written.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        let bytes = self.buffer.memory.as_ref().map_or(&[][..], Memory::as_slice);
        bytes.get(self.start..self.start.saturating_add(self.length)).unwrap_or_default()
    }

    /// What may still be written: bytes of unknown content. [`Self::advance`] says how many were filled.
    #[must_use]
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let (start, end) = (self.start.saturating_add(self.length), self.start.saturating_add(self.capacity_bytes));
        let bytes = self.buffer.memory.as_mut().map_or(&mut [][..], Memory::as_mut_slice);
        bytes.get_mut(start..end).unwrap_or_default()
    }

    /// Counts `bytes` of [`Self::spare_mut`] as written; at most all of them.
    pub fn advance(&mut self, bytes: usize) {
        self.length = self.length.saturating_add(bytes).min(self.capacity_bytes);
    }

    /// Copies in as much of `bytes` as there is place for. Gives how many that were.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.remaining());
        let (Some(from), Some(to)) = (bytes.get(..count), self.spare_mut().get_mut(..count)) else { return 0 };
        to.copy_from_slice(from);
        self.length = self.length.saturating_add(count);
        count
    }

    /// The bytes that were written, to be sliced and shared. `companion` lives as long as the last slice: what was reserved for them.
    #[must_use]
    pub fn freeze<T: Send + 'static>(self, companion: T) -> Bytes {
        if self.length == 0 {
            return Bytes::new();
        }
        Bytes::from_owner(Frozen { slab: self, _companion: companion })
    }
}

/// The owner of frozen bytes. Fields are dropped in their order: the memory is given back before what was reserved for it.
struct Frozen<T> {
    slab: SlabMut,
    _companion: T,
}

impl<T> AsRef<[u8]> for Frozen<T> {
    fn as_ref(&self) -> &[u8] {
        self.slab.as_slice()
    }
}

#[cfg(test)]
mod tests;
