//! The resolver at 127.0.0.11, where engines serve the names of a network that their user has
//! made. In a namespace of the host the engine itself answers there; in a guest this module does,
//! with what the engine says: it sends each question to the host and gives back the answer.
//!
//! The sockets are on ports that the kernel chooses, and a rule of the guest's kernel leads there
//! what is sent to port 53 of the address, as engines do it: a container may serve names on port
//! 53 of every address itself.
//!
//! Whoever asks is a container and is not trusted: questions that wait, connections and their time
//! are bounded. Messages are not looked at.

mod asked;
mod redirect;
mod server;

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
};

use bulkhead_protocol::names::RESOLVER;
use rustix::io::Errno;
use thiserror::Error;

use crate::channel::Channel;
use redirect::{Ports, Redirect};
use server::Server;

/// Why names cannot be asked for.
#[derive(Debug, Error)]
pub enum NamesError {
    /// A socket at the resolver's address.
    #[error("listen at {RESOLVER}: {0}")]
    Listen(#[source] io::Error),
    /// The rule for port 53.
    #[error("lead port 53 of {RESOLVER} to the agent: {0}")]
    Redirect(#[source] Errno),
}

/// Answers at 127.0.0.11 with what comes over `stream`, until that ends.
pub fn serve(stream: Channel) -> Result<(), NamesError> {
    let any = SocketAddr::from((RESOLVER, 0));
    let udp = UdpSocket::bind(any).map_err(NamesError::Listen)?;
    let tcp = TcpListener::bind(any).map_err(NamesError::Listen)?;
    let port = |address: io::Result<SocketAddr>| address.map(|address| address.port());
    let ports = Ports {
        udp: port(udp.local_addr()).map_err(NamesError::Listen)?,
        tcp: port(tcp.local_addr()).map_err(NamesError::Listen)?,
    };
    let redirect = Redirect::new(RESOLVER, ports).map_err(NamesError::Redirect)?;
    let server = Server::new(udp, tcp, stream).map_err(NamesError::Listen)?;
    tokio::spawn(async move {
        server.run().await;
        // Nobody answers any more.
        drop(redirect);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Ipv4Addr, TcpStream, UdpSocket},
        os::unix::net::UnixStream,
        thread,
        time::Duration,
    };

    use bulkhead_protocol::names::{Header, PORT, frame};

    use super::*;
    use crate::network::{loopback_up, tests::in_namespace};

    /// Answers each question on `stream` with its bytes in reverse order, and none of those that
    /// begin with `?`, until the agent hangs up. How many came over TCP.
    fn host(mut stream: UnixStream) -> usize {
        let mut over_tcp = 0;
        let mut header = [0; Header::SIZE];
        while stream.read_exact(&mut header).is_ok() {
            let Header { number, tcp, length } = Header::read(header).unwrap();
            let mut message = vec![0; length.into()];
            stream.read_exact(&mut message).unwrap();
            over_tcp += usize::from(tcp);
            message.reverse();
            if message.last() == Some(&b'?') {
                message.clear();
            }
            stream.write_all(&frame(number, tcp, &message).unwrap()).unwrap();
        }
        over_tcp
    }

    /// Runs `ask` while the agent serves in a namespace, whose `lo` is up.
    fn with_server(ask: impl FnOnce() + Send + 'static) {
        in_namespace(|| {
            loopback_up().unwrap();
            let (near, far) = UnixStream::pair().unwrap();
            let host = thread::spawn(move || host(far));
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                match serve(Channel::new(near.into()).unwrap()) {
                    Err(NamesError::Redirect(e)) => return println!("skipped: no nftables: {e}"),
                    served => served.unwrap(),
                }
                // Threads stay in the namespace of who starts them.
                let (done, ended) = tokio::sync::oneshot::channel();
                thread::spawn(move || {
                    ask();
                    done.send(()).unwrap();
                });
                ended.await.unwrap();
            });
            drop(runtime);
            host.join().unwrap();
        });
    }

    #[test]
    fn port_of_names_is_answered_while_another_serves_it_on_every_address() {
        with_server(|| {
            let limit = Some(Duration::from_secs(60));
            let own = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
            let _own = std::net::TcpListener::bind(("0.0.0.0", PORT)).unwrap();
            let client = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            client.set_read_timeout(limit).unwrap();
            let mut buffer = [0; 16];
            // One that has no answer holds up no other.
            client.send_to(b"?none", (RESOLVER, PORT)).unwrap();
            client.send_to(b"abc", (RESOLVER, PORT)).unwrap();
            let (length, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from), (&b"cba"[..], (RESOLVER, PORT).into()));
            client.send_to(b"own", (Ipv4Addr::LOCALHOST, PORT)).unwrap();
            assert_eq!(own.recv(&mut buffer).unwrap(), 3);

            let mut stream = TcpStream::connect((RESOLVER, PORT)).unwrap();
            stream.set_read_timeout(limit).unwrap();
            // Two questions on one connection, longer than a datagram.
            for _ in 0..2 {
                stream.write_all(&60_000u16.to_be_bytes()).unwrap();
                let message: Vec<u8> = (0..60_000u32).map(|i| (i % 251) as u8).collect();
                stream.write_all(&message).unwrap();
                let mut answer = vec![0; 60_002];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(answer[..2], 60_000u16.to_be_bytes());
                assert!(answer[2..].iter().eq(message.iter().rev()));
            }
        });
    }

    #[test]
    fn rule_cannot_be_flushed_and_goes_with_the_server() {
        let tables = || {
            let output = std::process::Command::new("nft").args(["list", "tables"]).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        in_namespace(move || {
            let ports = Ports { udp: 1, tcp: 2 };
            let redirect = match Redirect::new(RESOLVER, ports) {
                Err(e) => return println!("skipped: no nftables: {e}"),
                Ok(redirect) => redirect,
            };
            std::process::Command::new("nft").args(["flush", "ruleset"]).status().unwrap();
            assert!(tables().contains("bulkhead-names"), "{}", tables());
            assert_eq!(Redirect::new(RESOLVER, ports).err(), Some(Errno::PERM));
            drop(redirect);
            assert_eq!(tables(), "");
        });
    }
}
