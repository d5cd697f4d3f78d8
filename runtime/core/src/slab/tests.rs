//! The pool's classes, alignment, reuse and bounds.

use super::*;

fn filled(pool: &SlabPool, bytes: usize) -> Bytes {
    let mut slab = pool.take(bytes);
    assert_eq!(slab.append(&vec![7; bytes]), bytes);
    slab.freeze(())
}

#[test]
fn a_class_holds_what_was_asked_for_and_at_most_a_quarter_more() {
    for bytes in [1, 8 << 10, (8 << 10) + 1, 10 << 10, 1 << 20, (1 << 20) + 1, (5 << 18) + 1, 256 << 20] {
        let class = class_bytes(class_of(bytes).unwrap());
        let least = bytes.max(MIN_CLASS_BYTES);
        assert!(class >= least && class <= least + least / 4, "{bytes}: {class}");
    }
    assert_eq!(class_of(usize::MAX), None);
    assert!((0..CLASSES - 1).all(|class| class_bytes(class) < class_bytes(class + 1)));
    assert!((0..CLASSES).all(|class| class_of(class_bytes(class)) == Some(class)));
}

#[test]
fn every_slab_is_aligned_and_takes_what_it_was_made_for() {
    let pool = SlabPool::new(1 << 20);
    for bytes in [1, 63, 4096, 4097, 100_000, 1 << 20] {
        for _ in 0..3 {
            let mut slab = pool.take(bytes);
            assert_eq!((slab.remaining(), slab.is_empty()), (bytes, true));
            assert_eq!(slab.append(&vec![3; bytes - 1]), bytes - 1);
            assert_eq!(slab.append(&[4, 5]), 1, "no more than it was made for");
            assert_eq!((slab.len(), slab.remaining()), (bytes, 0));
            let frozen = slab.freeze(());
            assert_eq!(frozen.as_ptr().align_offset(ALIGNMENT), 0);
            assert!(frozen[..bytes - 1].iter().all(|byte| *byte == 3));
            assert_eq!(frozen[bytes - 1], 4);
        }
    }
}

#[test]
fn a_buffer_returns_when_its_last_slice_is_gone_and_is_used_again() {
    let pool = SlabPool::new(1 << 20);
    let whole = filled(&pool, 100_000);
    let address = whole.as_ptr();
    let slice = whole.slice(5..6);
    drop(whole);
    assert_eq!((pool.idle_bytes(), slice.as_ref()), (0, &[7][..]));
    drop(slice);
    assert!(pool.idle_bytes() >= 100_000);
    assert_eq!(filled(&pool, 100_000).as_ptr(), address);
}

#[test]
fn a_slab_that_is_given_up_returns_too_and_small_ones_are_not_kept() {
    let pool = SlabPool::new(1 << 20);
    drop(pool.take(4096));
    assert_eq!(pool.idle_bytes(), 0);
    drop(pool.take(5000));
    assert_eq!(pool.idle_bytes(), MIN_CLASS_BYTES);
}

#[test]
fn idle_buffers_never_exceed_the_maximum() {
    let pool = SlabPool::new(3 << 20);
    let held: Vec<_> = (0..5).map(|_| filled(&pool, 1 << 20)).collect();
    drop(held);
    assert_eq!(pool.idle_bytes(), 3 << 20);
    pool.shrink_to(1 << 20);
    assert_eq!(pool.idle_bytes(), 1 << 20);
    pool.shrink_to(0);
    assert_eq!(pool.idle_bytes(), 0);
}

#[test]
fn what_was_not_needed_between_two_trims_is_given_back() {
    let pool = SlabPool::new(8 << 20);
    drop([filled(&pool, 1 << 20), filled(&pool, 1 << 20), filled(&pool, 1 << 20)]);
    pool.trim();
    assert_eq!(pool.idle_bytes(), 3 << 20, "they were needed a moment ago");
    drop([filled(&pool, 1 << 20), filled(&pool, 1 << 20)]);
    pool.trim();
    assert_eq!(pool.idle_bytes(), 2 << 20, "two were needed, one was not");
    pool.trim();
    assert_eq!(pool.idle_bytes(), 0);
}

#[test]
fn a_companion_lives_as_long_as_the_last_slice() {
    let pool = SlabPool::new(0);
    let companion = Arc::new(());
    let mut slab = pool.take(10);
    slab.append(b"0123456789");
    let bytes = slab.freeze(Arc::clone(&companion));
    let slice = bytes.slice(..1);
    drop(bytes);
    assert_eq!(Arc::strong_count(&companion), 2);
    drop(slice);
    assert_eq!(Arc::strong_count(&companion), 1);
    drop(pool.take(10).freeze(Arc::clone(&companion)));
    assert_eq!(Arc::strong_count(&companion), 1, "an empty one keeps nothing");
}

struct Pinned(Vec<u8>);

impl SlabMemory for Pinned {
    fn as_slice(&self) -> &[u8] {
        &self.0
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

struct OnlyOne(std::sync::atomic::AtomicBool);

impl SlabAllocator for OnlyOne {
    fn allocate(&self, capacity_bytes: usize) -> Option<Box<dyn SlabMemory>> {
        let is_taken = self.0.swap(true, std::sync::atomic::Ordering::Relaxed);
        (!is_taken).then(|| Box::new(Pinned(vec![9; capacity_bytes])) as Box<dyn SlabMemory>)
    }
}

#[test]
fn an_engines_memory_is_used_while_there_is_some_and_the_heap_after_that() {
    let pool = SlabPool::with_allocator(1 << 20, Box::new(OnlyOne(false.into())));
    let (mut provided, mut heap) = (pool.take(10_000), pool.take(10_000));
    assert_eq!((provided.spare_mut()[0], heap.spare_mut()[0]), (9, 0));
    provided.advance(3);
    assert_eq!(provided.freeze(()), &[9, 9, 9][..]);
}
