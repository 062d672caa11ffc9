//! The I/O APIC in front of KVM: what the guest writes becomes MSI routes.
//!
//! Trust: offsets and data are the guest's choice.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use thiserror::Error;
use vmm_sys_util::fam;

use crate::ioapic::{Ioapic, MsiRoute};
use crate::layout::{IOAPIC_ADDR, IOAPIC_SIZE};

/// Why an interrupt route could not be changed.
#[derive(Debug, Error)]
pub enum RouteError {
    /// More routes than KVM takes.
    #[error("listing the interrupt routes")]
    List(#[source] fam::Error),
    /// `KVM_SET_GSI_ROUTING`.
    #[error("setting the interrupt routes (KVM_SET_GSI_ROUTING)")]
    Set(#[source] kvm_ioctls::Error),
}

/// The I/O APIC of one machine, shared by its vCPU threads.
pub(crate) struct Interrupts {
    vm: Arc<VmFd>,
    ioapic: Mutex<Ioapic>,
}

impl Interrupts {
    pub(crate) fn new(vm: Arc<VmFd>, pins: u32) -> Self {
        Self { vm, ioapic: Mutex::new(Ioapic::new(pins)) }
    }

    /// The offset of `addr` in the register window, if it lies there.
    pub(crate) fn offset(addr: u64) -> Option<u64> {
        addr.checked_sub(IOAPIC_ADDR.into()).filter(|offset| *offset < IOAPIC_SIZE)
    }

    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        self.ioapic.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), RouteError> {
        // Held until KVM has the routes: of two vCPUs the later one's must stay.
        let mut ioapic = self.ioapic.lock().unwrap_or_else(PoisonError::into_inner);
        if !ioapic.write(offset, data) {
            return Ok(());
        }
        let entries: Vec<_> = ioapic.routes().map(entry).collect();
        let routes = KvmIrqRouting::from_entries(&entries).map_err(RouteError::List)?;
        self.vm.set_gsi_routing(&routes).map_err(RouteError::Set)
    }
}

fn entry(route: MsiRoute) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: route.gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: route.address,
                data: route.data,
                ..Default::default()
            },
        },
        ..Default::default()
    }
}
