//! `bulkhead-agent`: PID 1 of the guest. Makes the guest a container host and serves the API of
//! `protocol/proto/agent.proto` over vsock.
//!
//! Trusts the host and nothing else: no container, image or process.
//!
//! - As PID 1 without arguments: boot, serve, power off.
//! - `serve RUN_DIR SOCKET_DIR`: serve the same API on UNIX sockets, on a machine that is set up
//!   already, and exit in place of powering off. For tests.
//! - `container-helper ORDER`: see [`helper`].

mod block;
mod boot;
mod cgroup;
mod channel;
mod container;
mod cpu;
mod helper;
mod limits;
mod memory;
mod network;
mod power;
mod proc;
mod reaper;
mod relay;
mod server;
mod stats;
mod streams;
mod transport;

use std::{
    env, io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use bulkhead_protocol::guest::{AGENT_PORT, READY, READY_PORT, SHARE_DIR, STDIO_PORT};
use rustix::io::write;
use thiserror::Error;
use ttrpc::asynchronous::{Server as RpcServer, transport::Listener as RpcListener};

use container::Containers;
use power::{ApiListener, Power};
use reaper::Reaper;
use server::Server;
use streams::Streams;
use transport::Transport;

/// The agent's files in a guest.
const RUN_DIR: &str = "/run/bulkhead";

/// Why the agent cannot serve.
#[derive(Debug, Error)]
enum ServeError {
    #[error("start the runtime: {0}")]
    Runtime(#[source] io::Error),
    #[error("handle SIGCHLD: {0}")]
    Reaper(#[source] io::Error),
    #[error("create {RUN_DIR}: {0}")]
    RunDir(#[source] io::Error),
    #[error("listen on port {port}: {source}")]
    Listen { port: u32, source: io::Error },
    #[error("serve the API: {0}")]
    Rpc(#[source] ttrpc::Error),
    #[error("tell the host on port {READY_PORT}: {0}")]
    Ready(#[source] io::Error),
    #[error("accept standard streams: {0}")]
    Streams(#[source] io::Error),
}

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    match args.next() {
        Some(mode) if mode == helper::HELPER => {
            std::process::exit(helper::main(args.next()));
        }
        Some(mode) if mode == "serve" => {
            let (Some(run_dir), Some(sockets)) = (args.next(), args.next()) else {
                return ExitCode::from(2);
            };
            let transport = Transport::Unix(PathBuf::from(sockets));
            match serve(Path::new(&run_dir), &transport, Power::new(None)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("bulkhead-agent: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        _ if std::process::id() == 1 => guest(),
        _ => {
            eprintln!("bulkhead-agent: runs as PID 1 of a bulkhead guest");
            ExitCode::from(2)
        }
    }
}

/// The life of a guest.
fn guest() -> ! {
    std::panic::set_hook(Box::new(|panic| {
        boot::kernel_log(&format!("bulkhead-agent: {panic}"));
    }));
    let shared = match boot::boot() {
        Ok(shared) => shared,
        Err(error) => boot::fatal("boot", &error),
    };
    let power = Power::new(shared.then_some(Path::new(SHARE_DIR)));
    match serve(Path::new(RUN_DIR), &Transport::Vsock, power) {
        Ok(()) => boot::restart(),
        Err(error) => boot::fatal("serve", &error),
    }
}

/// Serves until the host asks for the end.
fn serve(run_dir: &Path, transport: &Transport, power: Power) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(run(run_dir, transport, Arc::new(power)))
}

async fn run(run_dir: &Path, transport: &Transport, power: Arc<Power>) -> Result<(), ServeError> {
    let reaper = Reaper::start().map_err(ServeError::Reaper)?;
    let streams = Arc::new(Streams::default());
    let containers = Containers::new(run_dir, reaper, Arc::clone(&streams));
    let containers = Arc::new(containers.map_err(ServeError::RunDir)?);
    let listen = |port| {
        let listener = transport.listen(port);
        listener.map_err(|source| ServeError::Listen { port, source })
    };
    let api = ApiListener::new(listen(AGENT_PORT)?, Arc::clone(&power));
    let stdio = listen(STDIO_PORT)?;
    let mut server = RpcServer::new()
        .add_listener(RpcListener::new(api))
        .register_service(Server::service(containers, Arc::clone(&power), Arc::clone(&streams)));
    server.start().await.map_err(ServeError::Rpc)?;

    // Kept open: its end tells the host that the agent has ended.
    let ready = transport.dial(READY_PORT).map_err(ServeError::Ready)?;
    write(&ready, &[READY]).map_err(|errno| ServeError::Ready(errno.into()))?;
    tokio::select! {
        error = streams.serve(stdio) => Err(ServeError::Streams(error)),
        () = power.wait_off() => Ok(()),
    }
}
