//! Network interfaces of `bulkhead-vmm` by itself: taps in a network namespace of the test's own,
//! and the requests that fill and empty slots.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, bail};
use bulkhead_protocol::control::{NetStats, Reply, Request, VmState};
use bulkhead_protocol::vm::{FdIndex, RawNet, RawRateLimit, RawTokenBucket};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::vmm::{Machine, Vmm};
use crate::{run, tap};

/// Runs `test` in a network namespace of its own, which ends with it.
pub fn in_namespace(test: impl FnOnce() + Send) {
    let body = || {
        // SAFETY: only the network namespace of this thread changes.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace");
        run(Command::new("busybox").args(["ip", "link", "set", "lo", "up"])).expect(0);
        test();
    };
    let outcome = thread::scope(|scope| scope.spawn(body).join());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// An interface to be.
pub struct Interface {
    mac: [u8; 6],
    mtu: u16,
    taps: Vec<OwnedFd>,
    rx_rate: Option<RawRateLimit>,
    tx_rate: Option<RawRateLimit>,
}

impl Interface {
    /// An interface with hardware address 02:00:00:00:00:`number`, MTU 1500, and as many queue pairs
    /// as there are `taps`.
    pub fn new(number: u8, taps: Vec<OwnedFd>) -> Self {
        Self { mac: [2, 0, 0, 0, 0, number], mtu: 1500, taps, rx_rate: None, tx_rate: None }
    }

    /// With an MTU of so many bytes.
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = mtu;
        self
    }

    /// With so many packets in each direction, and then none for longer than a test takes.
    pub fn packets(mut self, rx: u64, tx: u64) -> Self {
        let limit = |size| {
            let bucket = RawTokenBucket { size, one_time_burst: 0, refill_time_ms: 1 << 40 };
            Some(RawRateLimit { bytes: None, ops: Some(bucket) })
        };
        (self.rx_rate, self.tx_rate) = (limit(rx), limit(tx));
        self
    }

    fn raw(&self, taps: Vec<FdIndex>) -> RawNet {
        let (rx_rate, tx_rate) = (self.rx_rate, self.tx_rate);
        RawNet { mac: self.mac, mtu: self.mtu, taps, rx_rate, tx_rate }
    }
}

/// Makes the tap interface `name` of this thread's namespace with `queues` queues, gives it
/// `address` and takes it up.
pub fn tap(name: &str, queues: usize, address: &str, mtu: u16) -> Vec<OwnedFd> {
    let open = |_| tap::open(name, queues > 1);
    let taps = (0..queues).map(open).collect::<Result<_>>().expect("a tap");
    let ip = |arguments: &[&str]| {
        run(Command::new("busybox").arg("ip").args(arguments)).expect(0);
    };
    ip(&["link", "set", name, "mtu", &mtu.to_string()]);
    ip(&["addr", "add", address, "dev", name]);
    ip(&["link", "set", name, "up"]);
    taps
}

/// Bytes of an Ethernet header, which begins with the address of the receiver.
const HEADER_BYTES: usize = 14;

/// Looks at the frames of all interfaces of a network namespace.
pub struct Frames {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<HashMap<[u8; 6], usize>>,
}

impl Frames {
    /// Looks at the frames of this thread's namespace from now on.
    pub fn watch() -> Self {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(eth::ALL))
            .expect("root");
        // How soon the reader sees that it is to stop.
        let period = Some(Duration::from_millis(100));
        set_socket_timeout(&socket, Timeout::Recv, period).expect("a socket");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let reader = thread::spawn(move || {
            let mut largest = HashMap::new();
            while !stopped.load(Ordering::Relaxed) {
                let mut header = [0; HEADER_BYTES];
                match recv(&socket, &mut header, RecvFlags::TRUNC) {
                    Ok((HEADER_BYTES, bytes)) => {
                        let to = header[..6].try_into().expect("six bytes");
                        let seen = largest.entry(to).or_default();
                        *seen = bytes.max(*seen);
                    }
                    Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(error) => panic!("reading frames: {error}"),
                }
            }
            largest
        });
        Self { stop, reader }
    }

    /// Stops; the bytes of the largest frame to each hardware address, without its header.
    pub fn largest(self) -> HashMap<[u8; 6], usize> {
        self.stop.store(true, Ordering::Relaxed);
        let largest = self.reader.join().expect("frames can be read");
        largest.into_iter().map(|(to, bytes)| (to, bytes - HEADER_BYTES)).collect()
    }
}

impl Machine {
    /// With one more network interface.
    pub fn interface(mut self, mut interface: Interface) -> Self {
        let taps = std::mem::take(&mut interface.taps);
        let taps = taps.into_iter().map(|tap| self.fd(tap)).collect();
        self.config.nets.push(interface.raw(taps));
        self
    }

    /// With so many empty network slots.
    pub fn spare_interfaces(mut self, count: u32) -> Self {
        self.config.net_spares = count;
        self
    }
}

impl Vmm {
    /// Fills a network slot of a machine in `state`.
    pub fn attach_net(&self, slot: u32, interface: &Interface, state: VmState) -> Result<()> {
        let net = interface.raw((0..).map(FdIndex).take(interface.taps.len()).collect());
        let fds: Vec<BorrowedFd<'_>> = interface.taps.iter().map(AsFd::as_fd).collect();
        self.send(&Request::AttachNet { slot, net }, &fds)?;
        self.done(state)
    }

    /// Empties a network slot of a machine in `state`.
    pub fn detach_net(&self, slot: u32, state: VmState) -> Result<()> {
        self.send(&Request::DetachNet { slot }, &[])?;
        self.done(state)
    }

    /// What each network interface has moved.
    pub fn net_stats(&self) -> Result<Vec<NetStats>> {
        self.send(&Request::Stats, &[])?;
        match self.receive()? {
            Reply::Stats { stats } => Ok(stats.nets),
            other => bail!("bulkhead-vmm answered {other:?}"),
        }
    }
}
