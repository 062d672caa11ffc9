//! The signal that makes a vCPU leave the guest.
//!
//! The first real-time signal is this crate's: [`install`] puts a handler on it, for the whole
//! process. On a vCPU's thread the handler sets `immediate_exit`, so that the signal counts
//! whenever it comes: KVM leaves the guest if it is in there, and does not enter it if it is about
//! to. Elsewhere it does nothing. System calls of device code go on (`SA_RESTART`); `KVM_RUN`
//! never does.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::{self, null_mut};
use std::sync::atomic::{Ordering, compiler_fence};

use kvm_ioctls::VcpuFd;

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(null_mut()) };
}

/// The signal.
pub(super) fn signal() -> i32 {
    libc::SIGRTMIN()
}

/// Installs the handler.
pub(super) fn install() -> io::Result<()> {
    let handler: extern "C" fn(i32) = handle;
    // SAFETY: all-zero bytes are a valid `sigaction`: no flags and an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler only writes through a thread-local pointer, which is async-signal-safe.
    let status = unsafe { libc::sigaction(signal(), &action, null_mut()) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn handle(_signal: i32) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is set only while the thread holds the vCPU whose page it points
        // into, and the handler runs on that thread.
        unsafe { ptr::write_volatile(flag, 1) };
    }
}

/// A vCPU that can be kicked out of the guest as long as this value lives on its thread.
pub(super) struct Kickable {
    vcpu: VcpuFd,
}

impl Kickable {
    /// Makes the calling thread the one that runs `vcpu`.
    pub(super) fn new(mut vcpu: VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self { vcpu }
    }

    /// The vCPU.
    pub(super) fn vcpu(&mut self) -> &mut VcpuFd {
        &mut self.vcpu
    }

    /// Forgets past kicks. A kick from now on counts, so look for its reason after this.
    pub(super) fn clear(&mut self) {
        self.vcpu.set_kvm_immediate_exit(0);
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(null_mut());
        compiler_fence(Ordering::SeqCst);
    }
}
