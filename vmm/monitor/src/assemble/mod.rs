//! From a checked configuration and descriptors to a machine with its devices, none of it running.
//!
//! Trust: kernel and initrd are files of the host's owner; everything that the guest will say
//! later goes to the devices and to `vmm/machine`.

mod blocks;
mod builder;
mod constructors;
mod descriptors;
mod error;
mod machine;
mod memory;
mod nets;
mod placed;
mod rate;

use bulkhead_devices::virtio::Reach;
use bulkhead_devices::virtio::balloon::Balloon;
use bulkhead_devices::virtio::mem::Mem;
use bulkhead_devices::virtio::rng::Rng;
use bulkhead_devices::worker::{ThreadHook, ThreadKind};
use bulkhead_machine::hotplug::{Hotplug, Reserved};
use bulkhead_machine::memory::{HugePages, allocate};
use bulkhead_machine::vm::{Shape, Vm};
use bulkhead_protocol::vm::VmConfig;
use vm_memory::GuestMemoryMmap;

use self::builder::{Builder, event, pins};
use self::constructors::{block_device, share_device, vsock_device};
pub use self::descriptors::Descriptors;
pub use self::error::AssembleError;
pub use self::machine::{Devices, Machine};
use self::memory::Addable;

/// A guest touches its memory here and there: zeroing 2 MiB for each first touch costs more than
/// the faults that it saves, and memory that nobody needs.
const HUGE_PAGES: HugePages = HugePages::Never;

/// Thread kinds that the devices of `config` need.
pub fn thread_kinds(config: &VmConfig) -> Vec<ThreadKind> {
    let mut kinds = vec![ThreadKind::Rng];
    if config.vsock().is_some() {
        kinds.push(ThreadKind::Vsock);
    }
    if config.share().is_some() {
        kinds.push(ThreadKind::Fs);
    }
    if !config.blocks().is_empty() {
        kinds.push(ThreadKind::Block);
    }
    if !config.nets().is_empty() || config.net_spares() > 0 {
        kinds.push(ThreadKind::Net);
    }
    if config.balloon() || config.hotplug_mib() > 0 {
        kinds.push(ThreadKind::Memory);
    }
    kinds
}

/// Builds the machine: memory, vCPUs, devices, the guest's kernel in memory.
pub fn assemble(
    config: &VmConfig,
    mut fds: Descriptors,
    hook: &ThreadHook,
) -> Result<Machine, AssembleError> {
    let memory = allocate(config.mem_mib(), HUGE_PAGES)?;
    let shape = Shape { vcpus: config.vcpus(), pins: pins(config) };
    let mut vm = Vm::new(fds.take(config.kvm())?, memory.clone(), shape)?;
    let room = Room::new(&mut vm, memory, config.hotplug_mib())?;
    let reset = event()?;
    let server_gone = event()?;
    let mut builder = Builder::new(vm, room.memory, room.reach.clone(), config, &mut fds, &reset)?;

    builder.attach(Rng::new(hook).map_err(AssembleError::Rng)?)?;
    if let Some(vsock) = config.vsock() {
        builder.attach(vsock_device(vsock, &mut fds, hook)?)?;
    }
    if let Some(share) = config.share() {
        let gone = server_gone.try_clone().map_err(AssembleError::Event)?;
        builder.attach(share_device(share, gone, &mut fds, hook)?)?;
    }
    for block in config.blocks() {
        let device = builder.attach(block_device(block, &mut fds, hook)?)?;
        builder.blocks.push(device);
    }
    builder.network(config, &mut fds, hook)?;
    if config.balloon() {
        let balloon = Balloon::new(hook).map_err(AssembleError::Balloon)?;
        builder.size.balloon = Some(builder.attach(balloon)?);
    }
    if let Some((reserved, hotplug)) = room.addable {
        let mem = Mem::new(reserved.start(), reserved.size(), hook).map_err(AssembleError::Mem)?;
        let device = builder.attach(mem)?;
        builder.size.addable = Some(Addable { hotplug, device, reach: room.reach });
    }
    builder.finish(config, fds, reset, server_gone)
}

/// The guest-physical address space as devices see it.
struct Room {
    memory: GuestMemoryMmap,
    reach: Reach,
    addable: Option<(Reserved, Hotplug)>,
}

impl Room {
    /// `boot` memory, and above it `hotplug_mib` MiB that no device may use yet.
    fn new(vm: &mut Vm, boot: GuestMemoryMmap, hotplug_mib: u32) -> Result<Self, AssembleError> {
        if hotplug_mib == 0 {
            return Ok(Self { memory: boot, reach: Reach::default(), addable: None });
        }
        let reserved = Reserved::new(&boot, hotplug_mib, HUGE_PAGES)?;
        let memory = reserved.join(&boot)?;
        let hotplug = vm.hotplug(reserved.clone());
        let reach = Reach::new(hotplug.end());
        Ok(Self { memory, reach, addable: Some((reserved, hotplug)) })
    }
}
