//! Guests of a few instructions on the real `/dev/kvm`.
//!
//! Each is a hand-made ELF file with a PVH entry. Where `/dev/kvm` cannot be opened the tests say
//! so and pass.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::{IoBus, StartError, VcpuExit, VcpuHook, VcpuSet};
use crate::boot::{Loading, Payload};
use crate::memory::{HugePages, allocate};
use crate::tests::{LOAD, pvh_elf};
use crate::vm::{Shape, Vm, VmError};

/// What the guest has done.
#[derive(Debug, PartialEq, Eq)]
enum Access {
    PortRead(u16, usize),
    PortWrite(u16, Vec<u8>),
    MemoryRead(u64, usize),
    MemoryWrite(u64, Vec<u8>),
}

/// A bus that passes on what it sees; reads give 0x5a in every byte.
struct Recorder(Mutex<Sender<Access>>);

impl Recorder {
    fn new() -> (Arc<Self>, Receiver<Access>) {
        let (sender, receiver) = mpsc::channel();
        (Arc::new(Self(Mutex::new(sender))), receiver)
    }

    fn see(&self, access: Access) {
        // Guests go on writing after a test has seen enough.
        let _ = self.0.lock().unwrap().send(access);
    }
}

impl IoBus for Recorder {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0x5a);
        self.see(Access::PortRead(port, data.len()));
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        self.see(Access::PortWrite(port, data.to_vec()));
    }

    fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0x5a);
        self.see(Access::MemoryRead(addr, data.len()));
    }

    fn mmio_write(&self, addr: u64, data: &[u8]) {
        self.see(Access::MemoryWrite(addr, data.to_vec()));
    }
}

fn kvm() -> Option<File> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(file) => Some(file),
        Err(error) => {
            eprintln!("skipped: /dev/kvm: {error}");
            None
        }
    }
}

fn no_hook() -> VcpuHook {
    Arc::new(|_| Ok(()))
}

/// A machine with 4 MiB whose first vCPU will run `code`.
fn machine(code: &[u8], vcpus: u32) -> Option<Vm> {
    let kvm = kvm()?;
    let memory = allocate(4, HugePages::Never).unwrap();
    let mut vm = Vm::new(kvm.into(), memory, Shape { vcpus, pins: 2 }).unwrap();
    let mut kernel = tempfile::tempfile().unwrap();
    kernel.write_all(&pvh_elf(code)).unwrap();
    vm.load(&Payload { kernel: &kernel, initrd: None, cmdline: "", loading: Loading::Mapped })
        .unwrap();
    Some(vm)
}

fn start(code: &[u8], vcpus: u32) -> Option<(VcpuSet, Receiver<Access>)> {
    let vm = machine(code, vcpus)?;
    let (bus, accesses) = Recorder::new();
    Some((VcpuSet::start(vm, bus, no_hook()).unwrap(), accesses))
}

/// The next end of a vCPU.
fn wait_exit(set: &VcpuSet) -> (u32, VcpuExit) {
    loop {
        if let Some(exit) = set.try_exit() {
            return exit;
        }
        // Blocks until there is something: the descriptor does not block by itself.
        let mut poll = libc::pollfd {
            fd: std::os::fd::AsRawFd::as_raw_fd(set.event()),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
        let _ = set.event().read();
    }
}

/// hlt, for ever.
const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];
/// Writes a byte to port 0x10, for ever.
const BUSY: [u8; 4] = [0xe6, 0x10, 0xeb, 0xfc];
/// lidt of an empty table, then an invalid instruction: nothing can be delivered.
const TRIPLE_FAULT: [u8; 15] = [
    0x31, 0xc0, // xor eax, eax
    0x50, 0x50, // push eax; push eax
    0x0f, 0x01, 0x1d, 0x00, 0x02, 0x00, 0x00, // lidt [0x200], which is zero
    0x0f, 0x0b, // ud2
    0xeb, 0xfe, // jmp .
];

#[test]
fn port_accesses_reach_the_bus_with_their_sizes() {
    let code = [
        &[0xb0, 0x41, 0xe6, 0x80][..], // mov al, 0x41; out 0x80, al
        &[0xe4, 0x81, 0xe6, 0x82],     // in al, 0x81; out 0x82, al
        &[0xb8, 0x44, 0x33, 0x22, 0x11, 0xe7, 0x83], // mov eax, 0x11223344; out 0x83, eax
        &HALT,
    ];
    let Some((_set, accesses)) = start(&code.concat(), 1) else {
        return;
    };
    assert_eq!(accesses.recv().unwrap(), Access::PortWrite(0x80, vec![0x41]));
    assert_eq!(accesses.recv().unwrap(), Access::PortRead(0x81, 1));
    assert_eq!(accesses.recv().unwrap(), Access::PortWrite(0x82, vec![0x5a]));
    assert_eq!(accesses.recv().unwrap(), Access::PortWrite(0x83, vec![0x44, 0x33, 0x22, 0x11]));
}

#[test]
fn string_output_reaches_the_bus_element_by_element() {
    let code = [
        &[0xbe, 0x00, 0x00, 0x10, 0x00][..], // mov esi, 0x100000, the code itself
        &[0xb9, 0x03, 0x00, 0x00, 0x00],     // mov ecx, 3
        &[0x66, 0xba, 0xf8, 0x03],           // mov dx, 0x3f8
        &[0xf3, 0x66, 0x6f],                 // rep outsw
        &HALT,
    ];
    let Some((_set, accesses)) = start(&code.concat(), 1) else {
        return;
    };
    for element in [[0xbe, 0x00], [0x00, 0x10], [0x00, 0xb9]] {
        assert_eq!(accesses.recv().unwrap(), Access::PortWrite(0x3f8, element.to_vec()));
    }
}

#[test]
fn memory_accesses_outside_ram_reach_the_bus() {
    let code = [
        &[0xa1, 0x00, 0x00, 0x00, 0xd0][..], // mov eax, [0xd0000000]
        &[0xa3, 0x04, 0x00, 0x00, 0xd0],     // mov [0xd0000004], eax
        &HALT,
    ];
    let Some((_set, accesses)) = start(&code.concat(), 1) else {
        return;
    };
    assert_eq!(accesses.recv().unwrap(), Access::MemoryRead(0xd000_0000, 4));
    assert_eq!(accesses.recv().unwrap(), Access::MemoryWrite(0xd000_0004, vec![0x5a; 4]));
}

#[test]
fn ioapic_is_answered_without_the_bus() {
    let code = [
        &[0xb8, 0x01, 0x00, 0x00, 0x00][..], // mov eax, 1
        &[0xa3, 0x00, 0x00, 0xc0, 0xfe],     // mov [0xfec00000], eax
        &[0xa1, 0x10, 0x00, 0xc0, 0xfe],     // mov eax, [0xfec00010]
        &[0xe7, 0x80],                       // out 0x80, eax
        &HALT,
    ];
    let Some((_set, accesses)) = start(&code.concat(), 1) else {
        return;
    };
    assert_eq!(accesses.recv().unwrap(), Access::PortWrite(0x80, vec![0x11, 0, 1, 0]));
}

#[test]
fn triple_fault_is_told_apart() {
    let Some((set, _accesses)) = start(&TRIPLE_FAULT, 1) else {
        return;
    };
    let (id, exit) = wait_exit(&set);
    assert_eq!(id, 0);
    assert!(matches!(exit, VcpuExit::TripleFault), "{exit:?}");
}

#[test]
fn stop_ends_a_busy_guest() {
    let Some((mut set, accesses)) = start(&BUSY, 1) else {
        return;
    };
    accesses.recv().unwrap();
    set.stop();
    assert!(matches!(set.try_exit(), Some((0, VcpuExit::Stopped))));
    assert!(set.try_exit().is_none(), "reported once");
}

#[test]
fn stop_ends_a_guest_that_never_exits() {
    // out 0x10, al; jmp .
    let Some((mut set, accesses)) = start(&[0xe6, 0x10, 0xeb, 0xfe], 1) else {
        return;
    };
    accesses.recv().unwrap();
    set.stop();
    assert!(matches!(set.try_exit(), Some((0, VcpuExit::Stopped))));
}

#[test]
fn stop_ends_a_halted_guest() {
    let Some((mut set, _accesses)) = start(&HALT, 1) else {
        return;
    };
    set.stop();
    assert!(matches!(set.try_exit(), Some((0, VcpuExit::Stopped))));
    set.stop();
}

#[test]
fn stop_ends_a_paused_guest() {
    let Some((mut set, accesses)) = start(&BUSY, 1) else {
        return;
    };
    accesses.recv().unwrap();
    set.pause();
    set.stop();
    assert!(matches!(set.try_exit(), Some((0, VcpuExit::Stopped))));
}

#[test]
fn paused_guest_does_nothing_until_resumed() {
    let Some((set, accesses)) = start(&BUSY, 1) else {
        return;
    };
    for _ in 0..20 {
        accesses.recv().unwrap();
        set.pause();
        // All vCPUs are out: what has been seen is all there will be.
        while accesses.try_recv().is_ok() {}
        assert!(accesses.try_recv().is_err());
        set.pause();
        set.resume();
        accesses.recv().unwrap();
    }
}

#[test]
fn vcpus_that_wait_for_their_start_can_be_paused_and_stopped() {
    let Some((mut set, accesses)) = start(&BUSY, 4) else {
        return;
    };
    accesses.recv().unwrap();
    set.pause();
    set.resume();
    set.stop();
    let mut ends: Vec<_> = std::iter::from_fn(|| set.try_exit()).collect();
    ends.sort_by_key(|(id, _)| *id);
    assert_eq!(ends.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(ends.iter().all(|(_, exit)| matches!(exit, VcpuExit::Stopped)), "{ends:?}");
}

#[test]
fn second_vcpu_runs_after_init_and_startup_interrupts() {
    // The second vCPU starts in real mode at 0x8000, where the first puts `out 0x20, al; hlt; jmp`.
    let code = [
        &[0xc7, 0x05, 0x00, 0x80, 0x00, 0x00, 0xe6, 0x20, 0xf4, 0xeb][..],
        &[0xc6, 0x05, 0x04, 0x80, 0x00, 0x00, 0xfd],
        // Local APIC on.
        &[0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00],
        // INIT and STARTUP with vector 8 to APIC id 1 (Intel SDM volume 3, section 11.6.1).
        &[0xc7, 0x05, 0x10, 0x03, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x01],
        &[0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x00, 0x45, 0x00, 0x00],
        &[0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x08, 0x46, 0x00, 0x00],
        &HALT,
    ];
    let Some((mut set, accesses)) = start(&code.concat(), 2) else {
        return;
    };
    let Access::PortWrite(port, _) = accesses.recv().unwrap() else { panic!("no port write") };
    assert_eq!(port, 0x20);
    set.stop();
    assert_eq!(std::iter::from_fn(|| set.try_exit()).count(), 2);
}

#[test]
fn hook_runs_on_every_vcpu_before_the_guest() {
    let Some(vm) = machine(&BUSY, 3) else { return };
    let (bus, accesses) = Recorder::new();
    let runs = Arc::new(AtomicUsize::new(0));
    let count = runs.clone();
    let hook: VcpuHook = Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let _set = VcpuSet::start(vm, bus, hook).unwrap();
    accesses.recv().unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 3);
}

#[test]
fn hook_that_fails_keeps_every_vcpu_out_of_the_guest() {
    let Some(vm) = machine(&BUSY, 3) else { return };
    let (bus, accesses) = Recorder::new();
    let hook: VcpuHook = Arc::new(|id| match id {
        1 => Err(std::io::Error::other("no filter")),
        _ => Ok(()),
    });
    let error = VcpuSet::start(vm, bus, hook).err().unwrap();
    assert!(matches!(error, StartError::Ended(1, _)), "{error:?}");
    assert!(accesses.recv().is_err(), "a guest ran");
}

#[test]
fn bus_that_panics_ends_its_vcpu() {
    struct Panics;
    impl IoBus for Panics {
        fn pio_read(&self, _: u16, _: &mut [u8]) {}
        fn pio_write(&self, _: u16, _: &[u8]) {
            panic!("on purpose");
        }
        fn mmio_read(&self, _: u64, _: &mut [u8]) {}
        fn mmio_write(&self, _: u64, _: &[u8]) {}
    }
    let Some(vm) = machine(&BUSY, 1) else { return };
    let set = VcpuSet::start(vm, Arc::new(Panics), no_hook()).unwrap();
    let (_, exit) = wait_exit(&set);
    assert!(matches!(exit, VcpuExit::Error(super::RunError::Panic)), "{exit:?}");
}

#[test]
fn notification_goes_to_its_event_and_not_to_the_bus() {
    let code = [
        &[0xb8, 0x03, 0x00, 0x00, 0x00][..], // mov eax, 3
        &[0xa3, 0x50, 0x00, 0x00, 0xd0],     // mov [0xd0000050], eax
        &[0x40],                             // inc eax
        &[0xa3, 0x50, 0x00, 0x00, 0xd0],     // mov [0xd0000050], eax
        &HALT,
    ];
    let Some(vm) = machine(&code.concat(), 1) else {
        return;
    };
    let (bus, accesses) = Recorder::new();
    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    vm.register_mmio_notify(&event, 0xd000_0050, 3).unwrap();
    let _set = VcpuSet::start(vm, bus, no_hook()).unwrap();
    assert_eq!(event.read().unwrap(), 1);
    assert_eq!(accesses.recv().unwrap(), Access::MemoryWrite(0xd000_0050, vec![4, 0, 0, 0]));
}

#[test]
fn signalled_line_interrupts_the_guest_once_for_each_signal() {
    let handler = 0x100;
    let mut code = [
        &[0x0f, 0x01, 0x15, 0x00, 0x50, 0x00, 0x00][..], // lgdt [0x5000]
        &[0x0f, 0x01, 0x1d, 0x10, 0x50, 0x00, 0x00],     // lidt [0x5010]
        &[0xbc, 0x00, 0x90, 0x00, 0x00],                 // mov esp, 0x9000
        // Local APIC on; pin 1 to vector 0x40 of APIC id 0.
        &[0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00],
        &[0xc7, 0x05, 0x00, 0x00, 0xc0, 0xfe, 0x13, 0x00, 0x00, 0x00],
        &[0xc7, 0x05, 0x10, 0x00, 0xc0, 0xfe, 0x00, 0x00, 0x00, 0x00],
        &[0xc7, 0x05, 0x00, 0x00, 0xc0, 0xfe, 0x12, 0x00, 0x00, 0x00],
        &[0xc7, 0x05, 0x10, 0x00, 0xc0, 0xfe, 0x40, 0x00, 0x00, 0x00],
        &[0xe6, 0x10],             // out 0x10, al
        &[0xfb, 0xf4, 0xeb, 0xfd], // sti; hlt; jmp to the hlt
    ]
    .concat();
    let wait = code.len() - 4;
    code.resize(handler, 0x90);
    code.extend([0xe6, 0x41]); // out 0x41, al
    code.extend([0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x00]); // end of interrupt
    // Back without iret, which KVM's emulator lacks: add esp, 12; jmp to the sti.
    code.extend([0x83, 0xc4, 0x0c, 0xe9]);
    code.extend((wait as i32 - (code.len() as i32 + 4)).to_le_bytes());
    let Some(vm) = machine(&code, 1) else { return };

    let write = |at: u64, words: &[u64]| {
        let bytes: Vec<_> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        vm.memory().write_slice(&bytes, GuestAddress(at)).unwrap();
    };
    // Limit and base of the descriptor tables, then the tables: flat code at 0x10, flat data at
    // 0x18; an interrupt gate for vector 0x40.
    write(0x5000, &[0x5020 << 16 | 0x1f]);
    write(0x5010, &[0x5100 << 16 | 0x207]);
    write(0x5020, &[0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
    let entry = LOAD + handler as u64;
    write(0x5300, &[entry >> 16 << 48 | 0x8e00_0010_0000 | entry & 0xffff]);

    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    vm.register_irq(&event, 1).unwrap();
    let (bus, accesses) = Recorder::new();
    let _set = VcpuSet::start(vm, bus, no_hook()).unwrap();
    assert!(matches!(accesses.recv().unwrap(), Access::PortWrite(0x10, _)));
    for _ in 0..3 {
        event.write(1).unwrap();
        assert!(matches!(accesses.recv().unwrap(), Access::PortWrite(0x41, _)));
    }
}

#[test]
fn line_that_does_not_exist_is_refused() {
    let Some(vm) = machine(&HALT, 1) else { return };
    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    for gsi in [0, 2, 24] {
        let error = vm.register_irq(&event, gsi).unwrap_err();
        assert!(matches!(error, VmError::Line { .. }), "{error}");
    }
    vm.register_irq(&event, 1).unwrap();
}

#[test]
fn machine_of_impossible_shape_is_refused() {
    let refused = |vcpus, pins| {
        let memory = allocate(1, HugePages::Never).unwrap();
        Vm::new(kvm()?.into(), memory, Shape { vcpus, pins }).err()
    };
    let Some(error) = refused(0, 2) else { return };
    assert!(matches!(error, VmError::Vcpus { vcpus: 0, .. }));
    assert!(matches!(refused(33, 2), Some(VmError::Vcpus { vcpus: 33, max: 32 })));
    assert!(matches!(refused(1, 0), Some(VmError::Lines(0))));
    assert!(matches!(refused(1, 25), Some(VmError::Lines(25))));
}

#[test]
fn descriptor_that_is_not_kvm_is_refused() {
    let file = File::open("/dev/null").unwrap();
    let memory = allocate(1, HugePages::Never).unwrap();
    let error = Vm::new(file.into(), memory, Shape { vcpus: 1, pins: 2 }).err().unwrap();
    assert!(error.to_string().contains("/dev/kvm"), "{error}");
}
