//! Real tap interfaces, in a network namespace that the test makes. Where that is not possible the
//! tests say so and pass: the suites have them in any case.

use std::fs::File;
use std::os::fd::OwnedFd;

use super::*;
use crate::virtio::net::BackendError;

const QUEUE_FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Runs `test` on a thread in an empty network namespace.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let body = move || {
        // SAFETY: only this thread's network namespace changes.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return eprintln!("skipped: no network namespace ({})", io::Error::last_os_error());
        }
        if let Err(error) = open("probe", QUEUE_FLAGS) {
            return eprintln!("skipped: no tap interface ({error})");
        }
        test();
    };
    std::thread::spawn(body).join().unwrap();
}

/// A queue of the tap interface `name`, which is made if it is not there.
fn open(name: &str, flags: i32) -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    request(file.as_raw_fd(), libc::TUNSETIFF, name, flags)?;
    Ok(file.into())
}

fn request(fd: RawFd, request: libc::Ioctl, name: &str, flags: i32) -> io::Result<()> {
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: flags as i16 };
    let mut argument = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru };
    for (to, from) in argument.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the structure is of this function, and what the request takes.
    match unsafe { libc::ioctl(fd, request, &mut argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes an interface up; the kernel then sends packets of its own to it.
fn up(name: &str) {
    let socket = UnixDatagram::unbound().unwrap();
    request(socket.as_raw_fd(), libc::SIOCSIFFLAGS, name, libc::IFF_UP).unwrap();
}

/// A frame to everybody, of an experimental protocol (IEEE 802, 88b5).
fn broadcast(len: usize) -> Vec<u8> {
    let mut frame = frame(len, 7);
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&MAC);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// A packet socket for the frames of `broadcast` on every interface, in this thread's namespace.
fn packet_socket() -> OwnedFd {
    use std::os::fd::FromRawFd;
    let protocol = i32::from(0x88b5_u16.to_be());
    // SAFETY: integers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: just made.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[test]
fn tap_carries_packets_both_ways() {
    in_namespace(|| {
        let backend = Backend::new(vec![open("t0", QUEUE_FLAGS).unwrap()]).unwrap();
        let mut machine = Machine::new(Net::new(&no_hook()).unwrap());
        machine.transport.replace(|net| net.attach(config(), backend)).unwrap();
        machine.start(u64::MAX);
        up("t0");
        let socket = packet_socket();
        let sent = broadcast(200);
        offer_packet(&mut machine, 1, Header::default(), &sent);
        machine.kick(1);
        let mut got = vec![0; 2000];
        // SAFETY: the buffer is this function's.
        let count = unsafe { libc::read(socket.as_raw_fd(), got.as_mut_ptr().cast(), got.len()) };
        assert_eq!(got[..usize::try_from(count).unwrap()], sent);

        // The kernel has its own to say on an interface that comes up (IPv6), or nothing.
        offer_buffers(&mut machine, 0, 60, 2048);
        // SAFETY: the name is a string with its end.
        let index = unsafe { libc::if_nametoindex(c"t0".as_ptr()) };
        let mut to: libc::sockaddr_ll = unsafe_zeroed();
        (to.sll_family, to.sll_ifindex) = (libc::AF_PACKET as u16, index as i32);
        let sent = broadcast(900);
        // SAFETY: buffer and address are of this function.
        let count = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                sent.as_ptr().cast(),
                sent.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as u32,
            )
        };
        assert_eq!(count, 900);
        let mut used = Vec::new();
        while !used.iter().any(|(_, len)| *len == 912) {
            used.extend(machine.wait_used(0, 1));
        }
        machine.transport.pause();
        let counts = machine.transport.device().counts().unwrap();
        assert_eq!((counts.tx_packets, counts.tx_dropped, counts.rx_dropped), (1, 0, 0));
    });
}

fn unsafe_zeroed() -> libc::sockaddr_ll {
    // SAFETY: a structure of integers.
    unsafe { std::mem::zeroed() }
}

#[test]
fn tap_whose_interface_is_removed_is_a_lost_link() {
    in_namespace(|| {
        let queue = open("t0", QUEUE_FLAGS).unwrap();
        let backend = Backend::new(vec![queue.try_clone().unwrap()]).unwrap();
        let mut machine = Machine::new(Net::new(&no_hook()).unwrap());
        machine.transport.replace(|net| net.attach(config(), backend)).unwrap();
        machine.start(u64::MAX);
        // An interface that is down refuses packets, and is there.
        offer_packet(&mut machine, 1, Header::default(), &broadcast(60));
        machine.kick(1);
        assert_eq!(machine.wait_used(1, 1).len(), 1);
        let mut link = [0xff; 2];
        crate::bus::BusDevice::read(&mut machine.transport, 0x106, &mut link);
        assert_eq!(link, [1, 0]);
        remove("t0");
        // The edge of its end tells the device.
        while link != [0, 0] {
            machine.line.read().unwrap();
            crate::bus::BusDevice::read(&mut machine.transport, 0x106, &mut link);
        }
    });
}

/// Removes an interface (`RTM_DELLINK`, rtnetlink(7)).
fn remove(name: &str) {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the name is a string with its end.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let mut message = Vec::new();
    message.extend(32_u32.to_ne_bytes());
    message.extend(libc::RTM_DELLINK.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16 | libc::NLM_F_ACK as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    // SAFETY: integers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE) };
    // SAFETY: the buffer is this function's.
    let sent = unsafe { libc::send(fd, message.as_ptr().cast(), message.len(), 0) };
    assert_eq!(sent, 32);
    let mut answer = [0; 64];
    // SAFETY: as above; the answer is the acknowledgement, and then the interface is gone.
    let count = unsafe { libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0) };
    assert!(count >= 20 && answer[16..20] == [0; 4], "{answer:?}");
    // SAFETY: it was opened above.
    unsafe { libc::close(fd) };
}

#[test]
fn queues_of_one_tap_make_several_pairs_and_of_two_none() {
    in_namespace(|| {
        let flags = QUEUE_FLAGS | libc::IFF_MULTI_QUEUE;
        let queue = |name| open(name, flags).unwrap();
        let backend = Backend::new(vec![queue("t0"), queue("t0"), queue("t0")]).unwrap();
        let mut machine = Machine::new(Net::new(&no_hook()).unwrap());
        machine.transport.replace(|net| net.attach(config(), backend)).unwrap();
        machine.start(u64::MAX);
        for pairs in [3, 1, 2, 3] {
            machine.memory.write_slice(&[4, 0, pairs, 0], GuestAddress(TX)).unwrap();
            machine.queues[6].offer(&[readable(TX, 4), writable(TX + 0x100, 1)]);
            machine.kick(6);
            machine.wait_used(6, 1);
            let answer: u8 = machine.memory.read_obj(GuestAddress(TX + 0x100)).unwrap();
            assert_eq!(answer, 0, "{pairs}");
        }
        let other = Backend::new(vec![queue("t1"), queue("t2")]).err();
        assert!(matches!(other, Some(BackendError::Other { queue: 1 })), "{other:?}");
    });
}

#[test]
fn descriptors_that_are_no_fitting_tap_are_refused_by_name() {
    in_namespace(|| {
        let refused = |fd| Backend::new(vec![fd]).err().unwrap().to_string();
        let plain = open("t0", libc::IFF_TAP | libc::IFF_NO_PI).unwrap();
        assert!(refused(plain).contains("needed are 0x5002"));
        let tun = open("t1", libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
        assert!(refused(tun).contains("flags"));
        let closed = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        assert!(refused(closed.into()).contains("no attached queue"));
        assert!(refused(File::open("/dev/null").unwrap().into()).contains("TUNGETIFF"));
        let one = open("t2", QUEUE_FLAGS).unwrap();
        let both = Backend::new(vec![one.try_clone().unwrap(), one]).err();
        assert!(matches!(both, Some(BackendError::Flags { queue: 0, .. })), "{both:?}");
        assert!(matches!(Backend::new(vec![]), Err(BackendError::Empty)));
    });
}
