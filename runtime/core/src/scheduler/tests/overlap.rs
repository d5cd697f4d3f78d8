//! One batch is staged while another computes: exact times on a device with a clock of its own.

use super::*;
use crate::{
    engine::Step,
    fake::device::{Call, Delays},
};

const BATCHES: u32 = 20;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Runs that many batches of one row, all of which wait before the first is staged.
fn run(build: fn(Delays) -> FakeDevice, delays: Delays) -> FakeDevice {
    let gate = Gate::default();
    let held = gate.clone();
    let device = build(delays).with_hook(move |_| held.pass());
    let started = Started::of(rows_on(&device, 1));
    let replies: Vec<_> = (0..BATCHES).map(|index| started.submit(u8::try_from(index).unwrap())).collect();
    gate.open();
    for (index, reply) in (0..).zip(replies) {
        assert_eq!(value(wait(reply)), Ok(index), "each gets its own");
    }
    device
}

#[test]
fn an_asynchronous_device_is_kept_busy_by_its_slowest_part() {
    for (stage, compute, finish) in [(1, 10, 1), (10, 1, 1), (1, 1, 10), (10, 10, 10), (4, 10, 6), (10, 2, 9)] {
        let delays = Delays { stage: ms(stage), compute: ms(compute), finish: ms(finish) };
        let elapsed = run(FakeDevice::asynchronous, delays).elapsed();
        let slowest = ms(stage.max(compute).max(finish));
        let filling = ms(stage + compute + finish - stage.max(compute).max(finish));
        assert_eq!(elapsed, slowest * BATCHES + filling, "{delays:?}");
    }
}

#[test]
fn a_device_that_does_nothing_at_once_takes_the_sum() {
    let delays = Delays { stage: ms(1), compute: ms(10), finish: ms(2) };
    assert_eq!(run(FakeDevice::synchronous, delays).elapsed(), ms(13) * BATCHES);
}

fn at(calls: &[Call], step: Step, batch: usize) -> usize {
    calls.iter().position(|call| (call.step, call.batch) == (step, batch)).unwrap()
}

#[test]
fn the_next_batch_is_staged_before_the_one_that_computes_is_finished() {
    let delays = Delays { stage: ms(1), compute: ms(10), finish: ms(1) };
    let calls = run(FakeDevice::asynchronous, delays).calls();
    for batch in 0..usize::try_from(BATCHES).unwrap() - 2 {
        let finished = at(&calls, Step::Finish, batch);
        assert!(at(&calls, Step::Launch, batch + 1) < finished, "{calls:?}");
        assert!(at(&calls, Step::Stage, batch + 2) < finished, "{calls:?}");
        assert!(at(&calls, Step::Launch, batch + 2) > finished, "no more than two are launched: {calls:?}");
    }
    let calls = run(FakeDevice::synchronous, delays).calls();
    assert!(at(&calls, Step::Stage, 1) > at(&calls, Step::Finish, 0), "{calls:?}");
}

#[test]
fn a_third_batch_is_taken_early_only_when_it_is_full() {
    let delays = Delays { stage: ms(1), compute: ms(10), finish: ms(1) };
    for (others, is_early) in [(4, true), (3, false)] {
        let gate = Gate::default();
        let held = gate.clone();
        let device = FakeDevice::asynchronous(delays).with_hook(move |_| held.pass());
        let started = Started::of(rows_on(&device, 2));
        // The hook holds the first batch, of one row, in its staging; the others wait.
        let first = started.occupy(0);
        let others: Vec<_> = (1..=others).map(|value| started.submit(value)).collect();
        gate.open();
        for (expected, reply) in (0..).zip(std::iter::once(first).chain(others)) {
            assert_eq!(value(wait(reply)), Ok(expected));
        }
        let calls = device.calls();
        assert_eq!(at(&calls, Step::Stage, 2) < at(&calls, Step::Finish, 0), is_early, "{calls:?}");
    }
}
