//! One end of a network test, in a guest or a network namespace: see `bulkhead_tests::peer`.
//!
//! `serve`; `tcp TO`; `udp TO BYTES`; `path-mtu TO BYTES`; `upload TO BYTES`; `download TO BYTES`,
//! where TO is an address or a name with a port. Exit status 0 when everything is as it should be.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result, bail};
use bulkhead_tests::peer;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let to = || -> Result<SocketAddr> {
        let to = words.get(1).context("an address with a port is missing")?;
        let found = to.to_socket_addrs().with_context(|| format!("looking {to} up"))?;
        found.into_iter().next().with_context(|| format!("{to} has no address"))
    };
    let bytes = || -> Result<u64> {
        words.get(2).and_then(|bytes| bytes.parse().ok()).context("a number of bytes is missing")
    };
    match words[..] {
        ["serve"] => {
            peer::serve()?;
            println!("serving");
            loop {
                std::thread::park();
            }
        }
        ["tcp", _] => peer::tcp(to()?),
        ["udp", ..] => peer::udp(to()?, usize::try_from(bytes()?)?),
        ["path-mtu", ..] => {
            println!("{}", peer::path_mtu(to()?, usize::try_from(bytes()?)?)?);
            Ok(())
        }
        ["upload", ..] => peer::upload(to()?, bytes()?),
        ["download", ..] => peer::download(to()?, bytes()?),
        _ => bail!("unknown words: {words:?}"),
    }
}
