//! The transport as Linux drives it, and as nobody should.

use std::sync::{Arc, Mutex, MutexGuard};

use proptest::prelude::*;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::state::{Transition, transition};
use super::{Kicks, MMIO_LEN, MmioTransport, QUEUE_NOTIFY};
use crate::bus::{Bus, BusDevice};
use crate::virtio::testing::{DriverQueue, MEMORY_BYTES, Machine, memory};
use crate::virtio::{ActivateError, Activation, RING_FEATURES, VirtioDevice};

/// What a [`Probe`] was asked to do.
#[derive(Default)]
struct Log {
    active: Option<Activation>,
    activations: u32,
    resets: u32,
    config: Vec<(u64, usize)>,
    refuse: bool,
}

/// A device that only takes notes, and checks that its life cycle is kept.
#[derive(Clone, Default)]
struct Probe(Arc<Mutex<Log>>);

impl Probe {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap()
    }
}

const DEVICE_FEATURE: u64 = 1 << 5;

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 16]
    }

    fn features(&self) -> u64 {
        DEVICE_FEATURE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.log().config.push((offset, data.len()));
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut log = self.log();
        assert!(log.active.is_none(), "activated twice");
        log.activations += 1;
        if log.refuse {
            return Err(ActivateError::Thread);
        }
        for active in &activation.queues {
            assert!(active.queue.is_valid(&activation.memory));
        }
        log.active = Some(activation);
        Ok(())
    }

    fn reset(&mut self) {
        let mut log = self.log();
        log.active = None;
        log.resets += 1;
    }

    fn pause(&mut self) {}

    fn resume(&mut self) -> Result<(), ActivateError> {
        Ok(())
    }
}

fn machine() -> (Machine<Probe>, Probe) {
    let probe = Probe::default();
    (Machine::new(probe.clone()), probe)
}

#[test]
fn driver_that_walks_as_linux_does_activates_the_device() {
    let (mut machine, probe) = machine();
    assert_eq!(machine.read(0x00), 0x7472_6976);
    assert_eq!((machine.read(0x04), machine.read(0x08)), (2, 42));
    machine.start(DEVICE_FEATURE);
    let log = probe.log();
    let active = log.active.as_ref().unwrap();
    assert_eq!(active.features, RING_FEATURES | DEVICE_FEATURE);
    let sizes: Vec<_> = active.queues.iter().map(|active| active.queue.size()).collect();
    assert_eq!(sizes, [64, 16]);
    for (active, driver) in active.queues.iter().zip(&machine.queues) {
        assert_eq!(active.queue.desc_table(), driver.descriptors);
        assert_eq!(active.queue.avail_ring(), driver.available);
        assert_eq!(active.queue.used_ring(), driver.used);
        assert!(active.queue.event_idx_enabled());
    }
}

#[test]
fn event_index_not_accepted_is_not_used() {
    let (mut machine, probe) = machine();
    for step in [1, 3] {
        machine.write(0x70, step);
    }
    machine.write(0x24, 1);
    machine.write(0x20, 1);
    machine.write(0x70, 11);
    machine.set_up_queues();
    machine.write(0x70, 15);
    let log = probe.log();
    let active = log.active.as_ref().unwrap();
    assert_eq!(active.features, 1 << 32);
    assert!(active.queues.iter().all(|active| !active.queue.event_idx_enabled()));
}

#[test]
fn features_are_refused_without_version_1_or_beyond_the_offer() {
    for (low, high) in [(0, 0), (DEVICE_FEATURE as u32, 0), (0x8000_0000, 1), (0, 0x8000_0001)] {
        let (mut machine, probe) = machine();
        for step in [1, 3] {
            machine.write(0x70, step);
        }
        for (half, value) in [(0, low), (1, high)] {
            machine.write(0x24, half);
            machine.write(0x20, value);
        }
        machine.write(0x70, 11);
        assert_eq!(machine.read(0x70), 3, "FEATURES_OK stays clear");
        machine.write(0x70, 15);
        assert_eq!((machine.read(0x70), probe.log().activations), (3, 0));
    }
}

#[test]
fn features_are_fixed_once_they_are_accepted() {
    let (mut machine, _) = machine();
    machine.negotiate(0);
    let before = machine.transport.state();
    machine.write(0x24, 0);
    machine.write(0x20, u32::MAX);
    assert_eq!(machine.transport.state().driver_features, before.driver_features);
}

#[test]
fn status_moves_one_bit_at_a_time_and_never_back() {
    let legal = [
        ((0, 1), Transition::Set(1)),
        ((1, 3), Transition::Set(2)),
        ((3, 11), Transition::AcceptFeatures),
        ((11, 15), Transition::Activate),
    ];
    for current in [0, 1, 3, 11, 15] {
        for written in 1..128 {
            let expected = legal
                .iter()
                .find(|((from, to), _)| *from == current && *to == written & !64)
                .map_or(Transition::Ignore, |(_, transition)| *transition);
            assert_eq!(transition(current, written), expected, "{current} to {written}");
        }
        assert_eq!(transition(current, current | 128), Transition::Set(128));
        assert_eq!(transition(current | 128, current | 128), Transition::Ignore);
        assert_eq!(transition(current | 128, 15), Transition::Ignore);
        assert_eq!(transition(current, 0), Transition::Reset);
    }
}

#[test]
fn queue_that_makes_no_sense_needs_a_reset_and_never_reaches_the_device() {
    // Register offset and value written for queue 1 before it is made ready.
    for (offset, value) in [
        (0x38, 0),
        (0x38, 15),
        (0x38, 32),
        (0x38, 0x1_0010),
        (0x80, 0x1001),
        (0x90, 0x1001),
        (0xa0, 0x1002),
        (0x80, MEMORY_BYTES as u32 - 0x10),
        (0x90, MEMORY_BYTES as u32 - 2),
        (0xa0, MEMORY_BYTES as u32 - 4),
        (0x84, u32::MAX),
        (0x94, u32::MAX),
        (0xa4, u32::MAX),
        (0x90, 0),
    ] {
        let (mut machine, probe) = machine();
        machine.negotiate(0);
        machine.set_up_queues();
        machine.write(0x44, 0);
        machine.write(offset, value);
        machine.write(0x44, 1);
        machine.write(0x70, 15);
        assert_eq!(machine.read(0x70), 15 | 64, "{offset:#x} = {value:#x}");
        assert_eq!(machine.read(0x60), 2, "configuration change");
        assert_eq!(probe.log().activations, 0);
        // After a reset the driver may try again.
        machine.start(0);
        assert_eq!(probe.log().activations, 1);
    }
}

#[test]
fn queue_left_out_needs_a_reset() {
    let (mut machine, probe) = machine();
    machine.negotiate(0);
    machine.write(0x70, 15);
    assert_eq!((machine.read(0x70), probe.log().activations), (15 | 64, 0));
}

#[test]
fn device_that_cannot_start_needs_a_reset() {
    let (mut machine, probe) = machine();
    probe.log().refuse = true;
    machine.negotiate(0);
    machine.set_up_queues();
    machine.write(0x70, 15);
    assert_eq!((machine.read(0x70), probe.log().activations), (15 | 64, 1));
    // A driver that adds bits to what it read changes nothing.
    machine.write(0x70, 15 | 64);
    assert_eq!(machine.read(0x70), 15 | 64);
}

#[test]
fn ready_queue_is_fixed_until_the_reset() {
    let (mut machine, _) = machine();
    machine.start(0);
    let before = machine.transport.state();
    for offset in [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
        machine.write(offset, 0);
    }
    assert_eq!(machine.transport.state().queues, before.queues);
    machine.write(0x70, 0);
    assert_eq!((machine.read(0x70), machine.read(0x44)), (0, 0));
}

#[test]
fn queue_registers_are_closed_before_features_are_accepted() {
    let (mut machine, _) = machine();
    machine.write(0x70, 1);
    machine.write(0x70, 3);
    machine.write(0x38, 8);
    machine.write(0x44, 1);
    assert_eq!((machine.read(0x44), machine.transport.state().queues[0].size), (0, 0));
}

#[test]
fn queue_that_does_not_exist_has_no_registers() {
    let (mut machine, _) = machine();
    machine.negotiate(0);
    for sel in [2, 0x1_0000, u32::MAX] {
        machine.write(0x30, sel);
        machine.write(0x38, 8);
        machine.write(0x44, 1);
        assert_eq!((machine.read(0x34), machine.read(0x44)), (0, 0));
    }
}

#[test]
fn notify_register_kicks_its_queue_alone() {
    let (mut machine, _) = machine();
    machine.start(0);
    machine.kick(1);
    machine.kick(2);
    machine.kick(0x1_0000);
    let Kicks::Each(kicks) = machine.transport.kicks() else { panic!("one kick") };
    assert!(kicks[0].read().is_err());
    assert_eq!(kicks[1].read().unwrap(), 1);
}

#[test]
fn reset_forgets_kicks_interrupts_and_registers() {
    let (mut machine, probe) = machine();
    let fresh = machine.transport.state();
    machine.start(0);
    machine.kick(0);
    machine.transport.interrupt().device_needs_reset();
    machine.write(0x30, 1);
    machine.write(0x14, 1);
    machine.write(0x70, 0);
    assert_eq!(machine.transport.state(), fresh);
    let Kicks::Each(kicks) = machine.transport.kicks() else { panic!("one kick") };
    assert!(kicks[0].read().is_err());
    assert_eq!(probe.log().resets, 2, "one by the driver's first step");
    assert!(probe.log().active.is_none());
}

#[test]
fn configuration_interrupt_is_acknowledged_and_used_buffers_stay_told() {
    let (mut machine, _) = machine();
    machine.transport.interrupt().used();
    let generation = machine.read(0xfc);
    machine.transport.interrupt().config_changed();
    assert_eq!(machine.read(0xfc), generation + 1);
    assert_eq!(machine.read(0x60), 3);
    machine.write(0x64, 1);
    assert_eq!(machine.read(0x60), 3, "an ioeventfd may take this write");
    machine.write(0x64, u32::MAX);
    assert_eq!(machine.read(0x60), 1);
    assert_eq!(machine.line.read().unwrap(), 2);
}

#[test]
fn shared_memory_that_is_absent_has_the_length_of_all_ones() {
    let (mut machine, _) = machine();
    for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(machine.read(offset), u32::MAX);
    }
}

#[test]
fn configuration_is_written_only_by_a_driver() {
    let (mut machine, probe) = machine();
    machine.transport.write(0x104, &[1]);
    assert!(probe.log().config.is_empty());
    machine.start(0);
    machine.transport.write(0x104, &[1, 2]);
    assert_eq!(probe.log().config, [(4, 2)]);
    let mut data = [0; 2];
    machine.transport.read(0x107, &mut data);
    assert_eq!(data, [7, 7]);
    machine.write(0x70, 128 | 15);
    machine.transport.write(0x104, &[1]);
    assert_eq!(probe.log().config.len(), 1);
}

#[test]
fn transport_on_a_bus_answers_its_range() {
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    let transport = MmioTransport::new(Probe::default(), memory(), line).unwrap();
    let mut bus = Bus::new();
    bus.insert(0xd000_0000, MMIO_LEN, Arc::new(Mutex::new(transport))).unwrap();
    let mut data = [0; 4];
    bus.read(0xd000_0008, &mut data);
    assert_eq!(u32::from_le_bytes(data), 42);
    bus.write(0xd000_0000 + QUEUE_NOTIFY, &1u32.to_le_bytes());
}

/// One access: offset, width, value, and whether it is a write.
fn any_access() -> impl Strategy<Value = (u64, usize, u64, bool)> {
    let register = prop_oneof![
        Just(0x14),
        Just(0x20),
        Just(0x24),
        Just(0x30),
        Just(0x38),
        Just(0x44),
        Just(0x50),
        Just(0x64),
        Just(0x70),
        Just(0x80),
        Just(0x84),
        Just(0x90),
        Just(0x94),
        Just(0xa0),
        Just(0xa4),
        0..MMIO_LEN,
    ];
    let width = prop_oneof![8 => Just(4usize), 1 => 0usize..9];
    let value = prop_oneof![
        Just(0u64),
        Just(1),
        Just(3),
        Just(11),
        Just(15),
        Just(64),
        0u64..300,
        (0u64..16).prop_map(|page| page << 12),
        any::<u64>(),
    ];
    (register, width, value, prop::bool::weighted(0.8))
}

fn legal(memory: &GuestMemoryMmap, step: usize) -> Vec<(u64, u64)> {
    let queue = |index: u64, size: u16| {
        let queue = DriverQueue::new(memory, index, size);
        vec![
            (0x30, index),
            (0x38, u64::from(size)),
            (0x80, queue.descriptors),
            (0x90, queue.available),
            (0xa0, queue.used),
            (0x44, 1),
        ]
    };
    match step {
        0 => vec![(0x70, 0), (0x70, 1), (0x70, 3)],
        1 => vec![(0x24, 1), (0x20, 1), (0x70, 11)],
        2 => queue(0, 16),
        3 => queue(1, 16),
        _ => vec![(0x70, 15)],
    }
}

proptest! {
    /// Any accesses between the steps of a proper driver: nothing panics, the device is never
    /// activated twice or with a queue that is not valid (the probe asserts both), and a reset
    /// always gives the first state back.
    #[test]
    fn any_register_sequence_keeps_the_life_cycle(
        storms in prop::collection::vec(prop::collection::vec(any_access(), 0..6), 5),
        again in any::<bool>(),
    ) {
        let (mut machine, probe) = machine();
        let fresh = machine.transport.state();
        for _ in 0..=usize::from(again) {
            for (step, storm) in storms.iter().enumerate() {
                for (offset, value) in legal(&machine.memory.clone(), step) {
                    machine.write(offset, value as u32);
                }
                for &(offset, width, value, write) in storm {
                    let mut data = value.to_le_bytes();
                    if write {
                        machine.transport.write(offset, &data[..width.min(8)]);
                    } else {
                        machine.transport.read(offset, &mut data[..width.min(8)]);
                    }
                }
            }
            let active = probe.log().active.is_some();
            let status = machine.transport.state().status;
            prop_assert!(!active || status & 15 == 15);
        }
        machine.write(0x70, 0);
        let generation = machine.transport.state().config_generation;
        let fresh = super::MmioState { config_generation: generation, ..fresh };
        prop_assert_eq!(machine.transport.state(), fresh);
        prop_assert!(probe.log().active.is_none());
    }
}
