//! A hostile or broken agent, for the failure suite: PID 1 of a guest whose initrd names its
//! misbehaviour in `/mode`.

use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use bulkhead_protocol::guest::{AGENT_PORT, HOST_CID, READY, READY_PORT, STDIO_PORT};

fn main() -> io::Result<()> {
    let mode = std::fs::read_to_string("/mode")?;
    match mode.trim() {
        "exit" => Ok(()),
        "reboot" => reboot(),
        "silent" => forever(),
        "busy" => loop {
            std::hint::spin_loop();
        },
        "hang-up" => {
            drop(connect(READY_PORT)?);
            forever()
        }
        "wrong-version" => {
            let mut ready = connect(READY_PORT)?;
            ready.write_all(&[READY.wrapping_add(90)])?;
            forever()
        }
        "garbage" => serve(|mut client| {
            let garbage: Vec<u8> = (0..=255u8).cycle().take(64 << 10).collect();
            // The host hangs up when it has seen enough.
            while client.write_all(&garbage).is_ok() {}
        }),
        "mute" => serve(|mut client| {
            let mut sink = [0; 4096];
            while matches!(client.read(&mut sink), Ok(1..)) {}
        }),
        "die-later" => serve(|mut client| {
            // The first byte of a request has come: the guest goes away in the middle of a call.
            let _ = client.read(&mut [0]);
            let _ = reboot();
        }),
        other => Err(io::Error::other(format!("no such mode: {other}"))),
    }
}

/// Listens as the agent does, says that it is ready, and treats each client with `treat`.
fn serve(treat: fn(UnixStream)) -> io::Result<()> {
    let api = listen(AGENT_PORT)?;
    let stdio = listen(STDIO_PORT)?;
    let mut ready = connect(READY_PORT)?;
    ready.write_all(&[READY])?;
    std::thread::spawn(move || {
        // Streams are accepted and held, never read.
        let mut held = Vec::new();
        while let Ok(client) = accept(&stdio) {
            held.push(client);
        }
    });
    loop {
        let client = accept(&api)?;
        std::thread::spawn(move || treat(client));
    }
}

fn forever() -> io::Result<()> {
    loop {
        std::thread::park();
    }
}

fn reboot() -> io::Result<()> {
    // SAFETY: reboot takes an integer and touches no memory.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    Err(io::Error::last_os_error())
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: socket takes integers and returns a new descriptor or -1.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    }
}

fn connect(port: u32) -> io::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    let socket = socket()?;
    let address = address(HOST_CID, port);
    // SAFETY: `address` is a valid sockaddr_vm of the length given.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(socket.into()) }
}

fn listen(port: u32) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: `address` is a valid sockaddr_vm of the length given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    // SAFETY: listen takes integers.
    if bound < 0 || unsafe { libc::listen(socket.as_raw_fd(), 16) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn accept(listener: &OwnedFd) -> io::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    // SAFETY: null pointers ask for no peer address.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and ours; a stream socket of any family reads and writes alike.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}
