//! Questions from the guest's sockets to the host's stream, answers back.

use std::{io, net, os::fd::OwnedFd, sync::Arc, time::Duration};

use bulkhead_protocol::names::{Header, LIMIT_S, OPEN_MAX, frame};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{
        Semaphore,
        mpsc::{self, Receiver, Sender},
        oneshot,
    },
    task::JoinSet,
    time::timeout,
};

use super::asked::{Asked, Asker};
use crate::channel::Channel;

/// Longest message (RFC 1035, section 4.2.2).
const MESSAGE_MAX: usize = u16::MAX as usize;
/// Connections at once.
const CONNECTIONS_MAX: usize = 32;
/// How long a connection may be silent, and a question wait: longer than the host lets it, so that
/// the host's answer comes first.
const PATIENCE: Duration = Duration::from_secs(LIMIT_S + 5);
/// After an error of a socket, which may last.
const PAUSE: Duration = Duration::from_millis(100);

/// What is served.
pub struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
    host: Channel,
}

/// The way to the host: whoever asks has a number before he sends, so that frames which wait to be
/// written are as bounded as questions are.
#[derive(Debug, Clone)]
struct Host {
    asked: Arc<Asked>,
    frames: Sender<Vec<u8>>,
}

impl Server {
    pub fn new(udp: net::UdpSocket, tcp: net::TcpListener, host: Channel) -> io::Result<Self> {
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp: UdpSocket::from_std(udp)?, tcp: TcpListener::from_std(tcp)?, host })
    }

    /// Serves until the host's stream ends.
    pub async fn run(self) {
        let Self { udp, tcp, host: stream } = self;
        let (frames, to_send) = mpsc::channel(OPEN_MAX);
        let host = Host { asked: Arc::default(), frames };
        tokio::select! {
            () = send(&stream, to_send) => {}
            () = receive(&stream, &host.asked, &udp) => {}
            () = datagrams(&udp, &host) => {}
            () = connections(&tcp, &host) => {}
        }
    }
}

impl Host {
    /// Sends a question; whether it could be asked.
    async fn ask(&self, message: &[u8], asker: Asker) -> bool {
        let tcp = matches!(asker, Asker::Connection(_));
        let Some(number) = self.asked.open(asker) else { return false };
        match frame(number, tcp, message) {
            Some(frame) => self.frames.send(frame).await.is_ok(),
            None => self.asked.take(number).is_none(),
        }
    }
}

/// Writes frames to the host until it hangs up.
async fn send(stream: &Channel, mut frames: Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if stream.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Hands out the host's answers until it hangs up.
async fn receive(stream: &Channel, asked: &Asked, udp: &UdpSocket) {
    let mut header = [0; Header::SIZE];
    let mut message = vec![0; MESSAGE_MAX];
    while stream.read_exact(&mut header).await.is_ok() {
        let Some(header) = Header::read(header) else { return };
        let answer = &mut message[..header.length.into()];
        if stream.read_exact(answer).await.is_err() {
            return;
        }
        match asked.take(header.number) {
            // One of no bytes: there is none, and whoever asked asks again, or gives up.
            Some(Asker::Datagram(to)) if !answer.is_empty() => {
                // As lost as a datagram may be.
                let _ = udp.send_to(answer, to).await;
            }
            // A connection that has ended waits for nothing.
            Some(Asker::Connection(waiting)) => drop(waiting.send(answer.to_vec())),
            Some(Asker::Datagram(_)) | None => {}
        }
    }
}

/// Asks what comes as datagrams. One too many is dropped, as datagrams may be.
async fn datagrams(udp: &UdpSocket, host: &Host) {
    let mut message = vec![0; MESSAGE_MAX];
    loop {
        match udp.recv_from(&mut message).await {
            Ok((length, from)) => {
                host.ask(&message[..length], Asker::Datagram(from)).await;
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Serves connections, which end with this.
async fn connections(tcp: &TcpListener, host: &Host) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut serving = JoinSet::new();
    loop {
        // Never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while serving.try_join_next().is_some() {}
        let accepted = tcp.accept().await.and_then(|(stream, _)| stream.into_std());
        match accepted.and_then(|stream| Channel::new(OwnedFd::from(stream))) {
            Ok(stream) => {
                let host = host.clone();
                serving.spawn(async move {
                    while converse(&stream, &host).await {}
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// One question on a connection and its answer; whether another may follow.
async fn converse(stream: &Channel, host: &Host) -> bool {
    let question = async {
        let mut length = [0; 2];
        stream.read_exact(&mut length).await?;
        let mut message = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut message).await?;
        io::Result::Ok(message)
    };
    let Ok(Ok(question)) = timeout(PATIENCE, question).await else { return false };
    let (waiting, answered) = oneshot::channel();
    if !host.ask(&question, Asker::Connection(waiting)).await {
        return false;
    }
    let answer = match timeout(PATIENCE, answered).await {
        Ok(Ok(answer)) if !answer.is_empty() => answer,
        _ => return false,
    };
    let Ok(length) = u16::try_from(answer.len()) else { return false };
    let framed = [&length.to_be_bytes()[..], &answer].concat();
    matches!(timeout(PATIENCE, stream.write_all(&framed)).await, Ok(Ok(())))
}
