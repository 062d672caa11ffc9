//! The threads of `bulkhead-vmm`.

use super::{EVENTS, Policy, RUNTIME, Rule, Test, always, when};

/// The thread that answers the runtime. It starts no thread and opens nothing: whatever it
/// needs exists before its filter does.
pub const CONTROL: Policy = Policy {
    name: "control",
    tables: &[
        RUNTIME,
        EVENTS,
        &[
            always(libc::SYS_recvmsg, "requests of the runtime"),
            always(libc::SYS_sendmsg, "replies to the runtime"),
            always(libc::SYS_sendto, "replies to the runtime"),
            always(libc::SYS_recvfrom, "requests of the runtime"),
            always(libc::SYS_poll, "waiting for the runtime or the guest's end"),
            always(libc::SYS_ppoll, "waiting for the runtime or the guest's end"),
            always(libc::SYS_lseek, "the size of a block device's file, when it has changed"),
            KICK,
            when(
                libc::SYS_ioctl,
                &[Test::Is { argument: 1, value: KVM_SET_USER_MEMORY_REGION }],
                "giving the guest memory that the runtime adds",
            ),
        ],
        ATTACH_NET,
    ],
};

/// A vCPU thread. Of the KVM ioctls it keeps running and interrupt routing: registers, memory
/// slots and devices can no longer be changed.
pub const VCPU: Policy = Policy {
    name: "vcpu",
    tables: &[
        RUNTIME,
        &[
            when(libc::SYS_ioctl, &[Test::Is { argument: 1, value: KVM_RUN }], "running the guest"),
            when(
                libc::SYS_ioctl,
                &[Test::Is { argument: 1, value: KVM_SET_GSI_ROUTING }],
                "the guest programs its I/O APIC, which lives in this process",
            ),
            when(
                libc::SYS_ioctl,
                &[Test::Is { argument: 1, value: KVM_GET_REGS }],
                "the instruction pointer, for the error of a vCPU that cannot go on",
            ),
            when(
                libc::SYS_ioctl,
                &[Test::Is { argument: 1, value: KVM_KVMCLOCK_CTRL }],
                "telling the guest that it was paused",
            ),
            always(libc::SYS_write, "interrupts and notifications; the serial console"),
            always(libc::SYS_read, "draining an event descriptor"),
        ],
    ],
};

/// The entropy device.
pub const RNG: Policy = Policy {
    name: "rng",
    tables: &[RUNTIME, EVENTS, &[always(libc::SYS_getrandom, "entropy for the guest")]],
};

/// A block device. Its ring is made and restricted before this filter is installed.
pub const BLOCK: Policy = Policy {
    name: "block",
    tables: &[
        RUNTIME,
        EVENTS,
        &[
            always(libc::SYS_io_uring_enter, "submitting to and waiting for the ring"),
            always(libc::SYS_preadv, "reads where there is no ring"),
            always(libc::SYS_pwritev, "writes where there is no ring"),
            always(libc::SYS_fdatasync, "flush"),
            always(libc::SYS_fallocate, "discard and write zeroes"),
            always(libc::SYS_timerfd_settime, "the timer of the rate limit"),
        ],
    ],
};

/// The vsock device.
pub const VSOCK: Policy = Policy {
    name: "vsock",
    tables: &[
        RUNTIME,
        EVENTS,
        &[
            always(libc::SYS_accept4, "a client of the host-side socket"),
            always(libc::SYS_recvmsg, "bytes for the guest"),
            always(libc::SYS_recvfrom, "the line that names a port"),
            always(libc::SYS_sendmsg, "bytes of the guest"),
            always(libc::SYS_shutdown, "half of a connection has ended"),
        ],
    ],
};

/// A network device. What it may do to its tap is what that descriptor is for.
pub const NET: Policy = Policy {
    name: "net",
    tables: &[
        RUNTIME,
        EVENTS,
        &[
            always(libc::SYS_readv, "packets for the guest"),
            always(libc::SYS_writev, "packets of the guest"),
            always(libc::SYS_timerfd_settime, "waiting for a rate limit"),
            when(
                libc::SYS_ioctl,
                &[Test::Is { argument: 1, value: TUNSETVNETHDRSZ }],
                "the header that a driver of virtio 1 has",
            ),
            when(
                libc::SYS_ioctl,
                &[Test::Is { argument: 1, value: TUNSETOFFLOAD }],
                "checksums and segments that the driver handles itself",
            ),
            when(
                libc::SYS_ioctl,
                &[Test::Is { argument: 1, value: TUNSETQUEUE }],
                "queue pairs that the driver takes into use or out of it",
            ),
        ],
    ],
};

/// Filling a network slot with a tap that the runtime has opened.
const ATTACH_NET: &[Rule] = &[
    when(
        libc::SYS_ioctl,
        &[Test::Is { argument: 1, value: TUNGETIFF }],
        "whether a descriptor of an interface that is attached is a fitting tap",
    ),
    when(
        libc::SYS_ioctl,
        &[Test::Is { argument: 1, value: FIONBIO }],
        "making the tap of an interface that is attached non-blocking",
    ),
    always(libc::SYS_timerfd_create, "the rate limit of an interface that is attached"),
];

/// The file system device.
pub const FS: Policy = Policy {
    name: "fs",
    tables: &[
        RUNTIME,
        EVENTS,
        &[
            always(libc::SYS_sendto, "requests to the file server"),
            always(libc::SYS_recvmsg, "replies of the file server"),
            always(libc::SYS_preadv, "file data to the guest"),
            always(libc::SYS_pwritev, "file data of the guest"),
            always(libc::SYS_lseek, "holes of a file that the guest has open"),
            always(libc::SYS_statx, "the kind of a file that the file server passes"),
        ],
    ],
};

/// The balloon or the memory device.
pub const MEMORY: Policy = Policy {
    name: "memory",
    tables: &[
        RUNTIME,
        EVENTS,
        &[when(
            libc::SYS_madvise,
            &[Test::Is { argument: 2, value: libc::MADV_DONTNEED as u32 }],
            "giving guest memory back to the host",
        )],
    ],
};

/// `_IO(KVMIO, 0x80)` of linux/kvm.h.
const KVM_RUN: u32 = 0xae80;
/// `_IOR(KVMIO, 0x81, struct kvm_regs)` of linux/kvm.h.
const KVM_GET_REGS: u32 = 0x8090_ae81;
/// `_IO(KVMIO, 0xad)` of linux/kvm.h.
const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
/// `_IOW(KVMIO, 0x46, struct kvm_userspace_memory_region)` of linux/kvm.h.
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
/// `_IOW(KVMIO, 0x6a, struct kvm_irq_routing)` of linux/kvm.h.
const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;

/// `FIONBIO` of asm-generic/ioctls.h.
const FIONBIO: u32 = 0x5421;
/// `_IOW('T', 208, unsigned int)` of linux/if_tun.h.
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
/// `_IOR('T', 210, unsigned int)` of linux/if_tun.h.
const TUNGETIFF: u32 = 0x8004_54d2;
/// `_IOW('T', 216, int)` of linux/if_tun.h.
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
/// `_IOW('T', 217, int)` of linux/if_tun.h.
const TUNSETQUEUE: u32 = 0x4004_54d9;

/// Kicking a vCPU out of KVM_RUN: the first real-time signal that the C library leaves free.
const KICK: Rule =
    when(libc::SYS_tgkill, &[Test::Is { argument: 2, value: 34 }], "kicking a vCPU out of KVM_RUN");
