//! Why a vCPU has stopped running, and the names of what KVM can say.

use std::fmt;
use std::io;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};
use thiserror::Error;

use crate::irq::RouteError;

/// How a vCPU ended. Each vCPU ends once.
#[derive(Debug)]
pub enum VcpuExit {
    /// The guest has shut its processor down: a triple fault (`KVM_EXIT_SHUTDOWN`).
    TripleFault,
    /// It was told to stop.
    Stopped,
    /// The guest asked KVM itself for a reset, a power-off or a crash (`KVM_EXIT_SYSTEM_EVENT`);
    /// the number is KVM's `KVM_SYSTEM_EVENT_*`.
    SystemEvent(u32),
    /// It cannot go on.
    Error(RunError),
}

/// Why a vCPU cannot go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// What its thread had to run first has failed.
    #[error("preparing the vCPU thread")]
    Hook(#[source] io::Error),
    /// Its thread panicked.
    #[error("the vCPU thread panicked")]
    Panic,
    /// `KVM_RUN`.
    #[error("running the vCPU (KVM_RUN)")]
    Run(#[source] kvm_ioctls::Error),
    /// KVM could not go on (`KVM_EXIT_INTERNAL_ERROR`).
    #[error("{0}")]
    Internal(InternalError),
    /// The processor refused the guest's state (`KVM_EXIT_FAIL_ENTRY`).
    #[error("the processor refused to enter the guest: hardware reason {reason:#x} on CPU {cpu}")]
    FailEntry {
        /// `hardware_entry_failure_reason`.
        reason: u64,
        /// Host CPU.
        cpu: u32,
    },
    /// Host memory behind the guest's is gone (`KVM_EXIT_MEMORY_FAULT`).
    #[error("no host memory behind guest address {gpa:#x} ({size} bytes, flags {flags:#x})")]
    MemoryFault {
        /// Guest-physical address.
        gpa: u64,
        /// Size of the range.
        size: u64,
        /// KVM's flags.
        flags: u64,
    },
    /// An interrupt route that the guest has set.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// An exit that this machine is not set up to cause.
    #[error("unexpected exit {number} ({name})", name = exit_name(*.number))]
    Unexpected {
        /// KVM's exit reason.
        number: u32,
    },
}

/// What KVM says about an internal error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalError {
    /// Kind of error, one of `KVM_INTERNAL_ERROR_*`.
    pub suberror: u32,
    /// Instruction pointer, if it could be read.
    pub rip: Option<u64>,
    /// The instruction that KVM could not emulate, if it says so.
    pub instruction: Vec<u8>,
    /// Whatever else KVM says.
    pub data: Vec<u64>,
}

impl InternalError {
    /// Reads the error that `run` describes.
    pub(crate) fn new(run: &kvm_run, rip: Option<u64>) -> Self {
        // SAFETY: every member of the union is plain data, and KVM has filled this one.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let count = (internal.ndata as usize).min(internal.data.len());
        let data = internal.data[..count].to_vec();
        let mut instruction = Vec::new();
        if internal.suberror == KVM_INTERNAL_ERROR_EMULATION {
            instruction = emulated_bytes(&data);
        }
        Self { suberror: internal.suberror, rip, instruction, data }
    }

    fn name(&self) -> &'static str {
        match self.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "an instruction could not be emulated",
            KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions at the same time",
            KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered",
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected exit of the processor",
            _ => "unknown suberror",
        }
    }
}

/// The instruction in the data of an emulation error: flags, then size and up to 15 bytes.
fn emulated_bytes(data: &[u64]) -> Vec<u8> {
    let [flags, bytes @ ..] = data else {
        return Vec::new();
    };
    let flag = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
    let bytes: Vec<u8> = bytes.iter().flat_map(|word| word.to_le_bytes()).collect();
    match bytes.split_first() {
        Some((size, bytes)) if flags & flag != 0 => {
            bytes[..usize::from(*size).min(15).min(bytes.len())].to_vec()
        }
        _ => Vec::new(),
    }
}

impl fmt::Display for InternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KVM internal error {} ({})", self.suberror, self.name())?;
        if let Some(rip) = self.rip {
            write!(f, " at {rip:#x}")?;
        }
        if !self.instruction.is_empty() {
            write!(f, ", instruction {:02x?}", self.instruction)?;
        } else if !self.data.is_empty() {
            write!(f, ", data {:x?}", self.data)?;
        }
        Ok(())
    }
}

/// KVM's name for an exit reason (`linux/kvm.h`).
fn exit_name(number: u32) -> &'static str {
    const NAMES: &[&str] = &[
        "UNKNOWN",
        "EXCEPTION",
        "IO",
        "HYPERCALL",
        "DEBUG",
        "HLT",
        "MMIO",
        "IRQ_WINDOW_OPEN",
        "SHUTDOWN",
        "FAIL_ENTRY",
        "INTR",
        "SET_TPR",
        "TPR_ACCESS",
        "S390_SIEIC",
        "S390_RESET",
        "DCR",
        "NMI",
        "INTERNAL_ERROR",
        "OSI",
        "PAPR_HCALL",
        "S390_UCONTROL",
        "WATCHDOG",
        "S390_TSCH",
        "EPR",
        "SYSTEM_EVENT",
        "S390_STSI",
        "IOAPIC_EOI",
        "HYPERV",
        "ARM_NISV",
        "X86_RDMSR",
        "X86_WRMSR",
        "DIRTY_RING_FULL",
        "AP_RESET_HOLD",
        "X86_BUS_LOCK",
        "XEN",
        "RISCV_SBI",
        "RISCV_CSR",
        "NOTIFY",
        "LOONGARCH_IOCSR",
        "MEMORY_FAULT",
    ];
    NAMES.get(number as usize).copied().unwrap_or("not known to this program")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn internal(suberror: u32, data: &[u64]) -> InternalError {
        let mut run = kvm_run::default();
        let mut error = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_13 {
            suberror,
            ndata: data.len() as u32,
            ..Default::default()
        };
        for (to, from) in error.data.iter_mut().zip(data) {
            *to = *from;
        }
        run.__bindgen_anon_1.internal = error;
        InternalError::new(&run, Some(0x1000))
    }

    #[test]
    fn emulation_error_names_the_instruction() {
        let error = internal(KVM_INTERNAL_ERROR_EMULATION, &[1, 0x0000_0000_c77f_0f03, 0]);
        assert_eq!(error.instruction, [0x0f, 0x7f, 0xc7]);
        let text = error.to_string();
        assert!(text.contains("emulated") && text.contains("0x1000"), "{text}");
        assert!(text.contains("[0f, 7f, c7]"), "{text}");
    }

    #[test]
    fn emulation_error_with_impossible_size_stays_within_the_data() {
        assert_eq!(internal(KVM_INTERNAL_ERROR_EMULATION, &[1, 0xff]).instruction.len(), 7);
        assert_eq!(internal(KVM_INTERNAL_ERROR_EMULATION, &[1]).instruction, []);
        assert_eq!(internal(KVM_INTERNAL_ERROR_EMULATION, &[]).instruction, []);
        assert_eq!(internal(KVM_INTERNAL_ERROR_EMULATION, &[0, 0xff]).instruction, []);
    }

    #[test]
    fn other_internal_error_shows_its_data() {
        let text = internal(KVM_INTERNAL_ERROR_DELIVERY_EV, &[0x80, 7]).to_string();
        assert!(text.contains("delivered") && text.contains("[80, 7]"), "{text}");
    }

    #[test]
    fn exit_names_are_those_of_their_numbers() {
        assert_eq!(exit_name(kvm_bindings::KVM_EXIT_HLT), "HLT");
        assert_eq!(exit_name(kvm_bindings::KVM_EXIT_IOAPIC_EOI), "IOAPIC_EOI");
        assert_eq!(exit_name(kvm_bindings::KVM_EXIT_X86_WRMSR), "X86_WRMSR");
        assert_eq!(exit_name(kvm_bindings::KVM_EXIT_MEMORY_FAULT), "MEMORY_FAULT");
        let text = RunError::Unexpected { number: 5 }.to_string();
        assert_eq!(text, "unexpected exit 5 (HLT)");
        assert_eq!(exit_name(4000), "not known to this program");
    }
}
