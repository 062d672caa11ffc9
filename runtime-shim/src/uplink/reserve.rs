//! Taking published ports on the host: a socket is bound to each for as long as the container
//! lives, so that a port which is in use is an error, and nobody else takes it later. Packets
//! never reach these sockets: they are redirected before.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, listen, socket_with,
    sockopt::set_socket_reuseaddr,
};

use super::{Port, Protocol, UplinkError};

/// A port that is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    _socket: OwnedFd,
}

/// Takes `ports` in the calling thread's namespace.
pub(super) fn reserve(ports: &[Port]) -> Result<Vec<Reservation>, UplinkError> {
    let taken = ports.iter().map(|port| {
        let socket = match port.protocol {
            Protocol::Tcp => tcp(port).map_err(Into::into),
            Protocol::Udp => UdpSocket::bind(port.address()).map(OwnedFd::from),
        };
        let _socket = socket.map_err(|e| UplinkError::Port(*port, e))?;
        Ok(Reservation { _socket })
    });
    taken.collect()
}

/// Listens, because a port without a listener can be shared by those who ask for it; with the
/// flag that lets old connections of another program linger.
fn tcp(port: &Port) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &port.address())?;
    listen(&socket, 0)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;
    use crate::eventually::eventually;

    fn port(host: u16, protocol: Protocol) -> Port {
        Port { ip: Ipv4Addr::LOCALHOST, host, guest: 80, protocol }
    }

    #[test]
    fn port_in_use_is_an_error_and_a_taken_one_is_in_use() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let wanted = [port(address.port(), Protocol::Tcp)];
        let error = reserve(&wanted).unwrap_err().to_string();
        assert_eq!(error, format!("publishing port {address}:80/tcp"));
        drop(listener);
        // A child that is about to become its program still has a copy of the socket.
        let held = eventually(|| reserve(&wanted).ok());
        assert!(TcpListener::bind(address).is_err());
        drop(held);
        drop(eventually(|| TcpListener::bind(address).ok()));
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let taken = socket.local_addr().unwrap().port();
        assert!(reserve(&[port(taken, Protocol::Udp)]).is_err());
    }
}
