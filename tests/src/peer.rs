//! Both ends of the network tests: the servers of a host or guest, and what asks them. The suites
//! call this on the host; in guests the program `peer` does.
//!
//! Streams are [`Pattern`]s, of which every byte is compared, so that nothing can be lost, come
//! twice, or come at another place.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::LIMIT;
use crate::process::run;

/// Gives back what it gets, TCP and UDP.
pub const ECHO: u16 = 7;
/// Takes a length and a [`Pattern`] of that length, and answers with the length that came, TCP.
pub const SINK: u16 = 9;
/// Gives a [`Pattern`] of the length that it gets, TCP.
pub const SOURCE: u16 = 19;
/// Answers every question for an IPv4 address with [`ANSWER`], UDP (RFC 1035).
pub const NAMES: u16 = 53;
/// The address that every name has.
pub const ANSWER: [u8; 4] = [192, 0, 2, 77];
/// Where the program lies in a guest's root.
pub const PROGRAM: &str = "/bin/peer";

/// Between two attempts.
const STEP: Duration = Duration::from_millis(200);
/// Bytes of one block of a pattern: no multiple of any segment's size.
const BLOCK: usize = 65_521;
/// Bytes of what is given back.
const MESSAGE: usize = 100_000;

/// A stream whose every block is another: its number, then always the same bytes.
struct Pattern {
    block: Vec<u8>,
    next: u64,
}

impl Pattern {
    fn new() -> Self {
        Self { block: (0..BLOCK).map(|i| (i * 31 % 251) as u8).collect(), next: 0 }
    }

    fn block(&mut self) -> &[u8] {
        self.block[..8].copy_from_slice(&self.next.to_le_bytes());
        self.next += 1;
        &self.block
    }

    /// Writes the first `bytes`.
    fn write(mut self, to: &mut impl Write, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let block = self.block();
            let now = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            to.write_all(&block[..now])?;
            left -= now as u64;
        }
        Ok(())
    }

    /// Reads to the end, comparing; the number of bytes.
    fn read(mut self, from: &mut impl Read) -> Result<u64> {
        let (mut bytes, mut buffer) = (0, vec![0; BLOCK]);
        loop {
            let mut filled = 0;
            while filled < BLOCK {
                match from.read(&mut buffer[filled..]).context("reading a stream")? {
                    0 => break,
                    now => filled += now,
                }
            }
            ensure!(buffer[..filled] == self.block()[..filled], "wrong bytes behind {bytes}");
            bytes += filled as u64;
            if filled < BLOCK {
                return Ok(bytes);
            }
        }
    }
}

/// Serves all ports of this module in both families. Returns when they are bound; the servers
/// run as long as the process.
pub fn serve() -> Result<()> {
    let names = UdpSocket::bind(("::", NAMES)).context("the port of names")?;
    thread::spawn(move || serve_datagrams(&names, resolve));
    let echo = UdpSocket::bind(("::", ECHO)).context("the UDP port")?;
    never_fragment(&echo, libc::AF_INET)?;
    never_fragment(&echo, libc::AF_INET6)?;
    thread::spawn(move || serve_datagrams(&echo, |message| message.to_vec()));
    for (port, serve) in
        [(ECHO, give_back as fn(TcpStream) -> Result<()>), (SINK, take), (SOURCE, give)]
    {
        let listener = TcpListener::bind(("::", port)).context("a TCP port")?;
        thread::spawn(move || {
            for stream in listener.incoming() {
                // A failure is seen by the other side, which gets no answer.
                thread::spawn(move || stream.context("accepting").and_then(serve));
            }
        });
    }
    Ok(())
}

fn serve_datagrams(socket: &UdpSocket, answer: impl Fn(&[u8]) -> Vec<u8>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // What cannot be sent is lost, as datagrams may be.
            let _ = socket.send_to(&answer(&buffer[..length]), from);
        }
    }
}

/// The answer to a query of one question.
fn resolve(query: &[u8]) -> Vec<u8> {
    const HEADER: usize = 12;
    let question = query.get(HEADER..).unwrap_or_default();
    // The name's labels end with an empty one; type and class follow.
    let name = question.iter().position(|byte| *byte == 0).map_or(0, |end| end + 1);
    let is_for_ipv4 = question.get(name..name + 4) == Some(&[0, 1, 0, 1]);
    let mut answer = query.get(..2).unwrap_or_default().to_vec();
    // An answer with authority and recursion; one question, and as many answers as there are.
    answer.extend([0x85, 0x80, 0, 1, 0, u8::from(is_for_ipv4), 0, 0, 0, 0]);
    answer.extend(question.get(..name + 4).unwrap_or_default());
    if is_for_ipv4 {
        // The name of the question, type and class, a minute, and the address.
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(ANSWER);
    }
    answer
}

fn give_back(mut stream: TcpStream) -> Result<()> {
    io::copy(&mut stream.try_clone()?, &mut stream)?;
    Ok(stream.shutdown(Shutdown::Write)?)
}

fn take(mut stream: TcpStream) -> Result<()> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    let bytes = Pattern::new().read(&mut (&mut stream).take(u64::from_le_bytes(bytes)))?;
    Ok(stream.write_all(&bytes.to_le_bytes())?)
}

fn give(mut stream: TcpStream) -> Result<()> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Pattern::new().write(&mut stream, u64::from_le_bytes(bytes))?;
    Ok(stream.shutdown(Shutdown::Write)?)
}

/// Connects, as soon as somebody listens.
fn connect(to: SocketAddr) -> Result<TcpStream> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match TcpStream::connect_timeout(&to, LIMIT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT))?;
                stream.set_write_timeout(Some(LIMIT))?;
                return Ok(stream);
            }
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("connecting to {to}"));
            }
            Err(_) => thread::sleep(STEP),
        }
    }
}

/// Sends a message over TCP, ends that direction at once, and takes the message back.
pub fn tcp(to: SocketAddr) -> Result<()> {
    let stream = connect(to)?;
    let sent: Vec<u8> = (0..MESSAGE).map(|i| (i * 31 % 251) as u8).collect();
    let mut received = Vec::new();
    thread::scope(|scope| {
        let write = || (&stream).write_all(&sent).and_then(|()| stream.shutdown(Shutdown::Write));
        let writer = scope.spawn(write);
        let read = (&stream).read_to_end(&mut received).context("reading what comes back");
        writer.join().expect("it does not panic").context("writing")?;
        read
    })?;
    ensure!(received == sent, "{} of {MESSAGE} bytes came back from {to}", received.len());
    Ok(())
}

/// Sends a datagram of `bytes` that no router may cut to pieces, until it comes back.
pub fn udp(to: SocketAddr, bytes: usize) -> Result<()> {
    let socket = datagrams(to)?;
    let sent: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
    let mut received = vec![0; 1 << 16];
    let deadline = Instant::now() + LIMIT;
    let mut last = None;
    while Instant::now() < deadline {
        if let Err(error) = socket.send(&sent) {
            last = Some(error);
            thread::sleep(STEP);
            continue;
        }
        match socket.recv(&mut received) {
            Ok(length) if received[..length] == sent => return Ok(()),
            Ok(length) => bail!("{length} other bytes came back from {to}"),
            Err(error) => last = Some(error),
        }
    }
    bail!("{bytes} bytes did not come back from {to}: {last:?}")
}

/// The largest packet, in bytes, that goes to `to` uncut, once a datagram of `bytes` proves too
/// large.
pub fn path_mtu(to: SocketAddr, bytes: usize) -> Result<u32> {
    let socket = datagrams(to)?;
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        match socket.send(&vec![0; bytes]) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                let (level, name) = match to {
                    SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
                    SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
                };
                return option(&socket, level, name);
            }
            _ => thread::sleep(STEP),
        }
    }
    bail!("every datagram of {bytes} bytes was sent to {to}")
}

/// A UDP socket for `to` whose packets are never cut to pieces.
fn datagrams(to: SocketAddr) -> Result<UdpSocket> {
    let (any, family) = match to {
        SocketAddr::V4(_) => ("0.0.0.0:0", libc::AF_INET),
        SocketAddr::V6(_) => ("[::]:0", libc::AF_INET6),
    };
    let socket = UdpSocket::bind(any).context("a UDP socket")?;
    never_fragment(&socket, family)?;
    socket.connect(to).with_context(|| format!("there is no way to {to}"))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket)
}

/// Sends a stream of so many bytes, all of which must arrive.
pub fn upload(to: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = connect(to)?;
    stream.write_all(&bytes.to_le_bytes())?;
    Pattern::new().write(&mut stream, bytes).with_context(|| format!("sending to {to}"))?;
    let mut arrived = [0; 8];
    stream.read_exact(&mut arrived).with_context(|| format!("{to} found the stream wrong"))?;
    let arrived = u64::from_le_bytes(arrived);
    ensure!(arrived == bytes, "{arrived} of {bytes} bytes arrived at {to}");
    Ok(())
}

/// Fetches a stream of so many bytes, all of which must arrive.
pub fn download(from: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = connect(from)?;
    stream.write_all(&bytes.to_le_bytes())?;
    let arrived = Pattern::new().read(&mut stream)?;
    ensure!(arrived == bytes, "{arrived} of {bytes} bytes came from {from}");
    Ok(())
}

/// `IP_MTU_DISCOVER` and its like (ip(7)): packets that are too large are an error.
fn never_fragment(socket: &UdpSocket, family: libc::c_int) -> Result<()> {
    let (level, name) = match family {
        libc::AF_INET => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        _ => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    };
    let value = libc::IP_PMTUDISC_DO;
    let size = size_of_val(&value) as libc::socklen_t;
    let pointer = (&raw const value).cast();
    // SAFETY: the socket is open, and the value outlives the call and has this size.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context("refusing to cut packets to pieces"),
    }
}

fn option(socket: &UdpSocket, level: libc::c_int, name: libc::c_int) -> Result<u32> {
    let mut value: u32 = 0;
    let mut size = size_of_val(&value) as libc::socklen_t;
    let pointer = (&raw mut value).cast();
    // SAFETY: the socket is open, and the kernel writes at most `size` bytes into the value.
    match unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, pointer, &raw mut size) } {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()).context("asking for the MTU of a path"),
    }
}

/// The servers in a network namespace, which end when this is dropped.
pub struct Served(Child);

impl Served {
    /// Serves in the namespace that `path` leads to; returns when all ports are bound.
    pub fn start(program: &str, path: &str) -> Self {
        let mut child = Command::new("nsenter")
            .args([&format!("--net={path}"), program, "serve"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("nsenter is installed");
        let mut line = String::new();
        let said = BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line);
        assert!(said.is_ok() && line == "serving\n", "{said:?} {line:?}");
        Self(child)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts the program and the libraries that it needs into a root file system.
pub fn install(program: &str, root: &Path) {
    let needed = run(Command::new("ldd").arg(program)).expect(0).text();
    for library in needed.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = root.join(&library[1..]);
        fs::create_dir_all(place.parent().expect("a directory")).expect("directory");
        fs::copy(library, place).expect("copying a library");
    }
    fs::create_dir_all(root.join("bin")).expect("directory");
    fs::copy(program, root.join(&PROGRAM[1..])).expect("copying the program");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_one_ipv4_address() {
        let query = |kind| {
            let mut query = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0];
            query.extend([0, kind, 0, 1]);
            query
        };
        let answer = resolve(&query(1));
        assert_eq!((&answer[..2], answer[7]), (&[7, 8][..], 1));
        assert!(answer.ends_with(&ANSWER));
        assert_eq!(resolve(&query(28))[7], 0);
    }

    #[test]
    fn pattern_is_found_whole_or_not_at_all() {
        let bytes = 3 * BLOCK as u64 + 5;
        let mut stream = Vec::new();
        Pattern::new().write(&mut stream, bytes).expect("written");
        assert_eq!(Pattern::new().read(&mut stream.as_slice()).expect("right"), bytes);
        stream.drain(BLOCK..2 * BLOCK);
        assert!(Pattern::new().read(&mut stream.as_slice()).is_err(), "a block is missing");
    }
}
