//! TCP to and from the host.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, SocketType, socket};

use crate::marks::Marks;

const INTERFACE: &[u8] = b"eth0";
const OWN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// Ports of the host: one takes, one sends.
const SINK: u16 = 5001;
const SOURCE: u16 = 5002;
/// MiB of a case.
const MIB: u32 = 128;
/// Bytes of one read or write.
const CHUNK: usize = 128 << 10;

/// Runs both cases.
pub fn run(marks: &mut Marks) -> Result<()> {
    interface_up().context("setting up the interface")?;
    let mut sink = TcpStream::connect((HOST, SINK)).context("cannot reach the sink")?;
    let mut buffer = vec![0xc3; CHUNK];
    marks.case("tcp-tx", || send(&mut sink, &buffer))?;
    let mut source = TcpStream::connect((HOST, SOURCE)).context("cannot reach the source")?;
    marks.case("tcp-rx", || receive(&mut source, &mut buffer))
}

/// Ends when the other side has read everything.
fn send(sink: &mut TcpStream, buffer: &[u8]) -> Result<u64> {
    for _ in 0..((MIB as usize) << 20) / buffer.len() {
        sink.write_all(buffer)?;
    }
    sink.shutdown(Shutdown::Write)?;
    sink.read_exact(&mut [0])?;
    Ok(MIB.into())
}

fn receive(source: &mut TcpStream, buffer: &mut [u8]) -> Result<u64> {
    source.write_all(&MIB.to_le_bytes())?;
    let mut bytes = 0;
    loop {
        match source.read(buffer)? {
            0 => break,
            count => bytes += count as u64,
        }
    }
    ensure!(bytes == u64::from(MIB) << 20, "only {bytes} bytes came");
    Ok(MIB.into())
}

/// Gives the interface its address and switches it on (netdevice(7)).
fn interface_up() -> Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let configure = |command, fill: &dyn Fn(&mut libc::ifreq)| {
        // SAFETY: all-zero bytes are a value of this C structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(INTERFACE) {
            *to = from.cast_signed();
        }
        fill(&mut request);
        // SAFETY: the kernel reads one ifreq, which is live.
        match unsafe { libc::ioctl(socket.as_raw_fd(), command, &raw mut request) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    configure(libc::SIOCSIFADDR, &|request| request.ifr_ifru.ifru_addr = address(OWN))?;
    configure(libc::SIOCSIFNETMASK, &|request| request.ifr_ifru.ifru_addr = address(MASK))?;
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    configure(libc::SIOCSIFFLAGS, &|request| request.ifr_ifru.ifru_flags = flags)?;
    Ok(())
}

/// `struct sockaddr_in` in the form that an ifreq holds.
fn address(ip: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(ip.octets()) {
        *to = from.cast_signed();
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}
