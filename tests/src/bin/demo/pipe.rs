//! A hundred megabytes through a container and back.

use std::io::{Read, Write};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use bulkhead_tests::bulkhead;
use sha2::{Digest, Sha256};

use crate::Stage;

const SIZE: usize = 100_000_000;
const CHUNK: usize = 1_000_000;

/// The same bytes in every run, and no two chunks alike (xorshift64*).
struct Bytes(u64);

impl Bytes {
    fn chunk(&mut self) -> Vec<u8> {
        let mut chunk = Vec::with_capacity(CHUNK);
        while chunk.len() < CHUNK {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            chunk.extend_from_slice(&self.0.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
        }
        chunk
    }
}

/// `cat` in a container: what comes out has the checksum of what went in.
pub fn hundred_megabytes(stage: &Stage) -> Result<String> {
    let mut command = bulkhead();
    command.args(["launch", "--rm", "-i"]).arg(&stage.busybox).arg("cat");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start bulkhead")?;
    let mut stdin = child.stdin.take().context("stdin is a pipe")?;
    let mut stdout = child.stdout.take().context("stdout is a pipe")?;
    let writer = std::thread::spawn(move || -> Result<Sha256> {
        let (mut sent, mut bytes) = (Sha256::new(), Bytes(1));
        for _ in 0..SIZE / CHUNK {
            let chunk = bytes.chunk();
            sent.update(&chunk);
            stdin.write_all(&chunk).context("cannot write to the container")?;
        }
        Ok(sent)
    });
    let (mut received, mut count) = (Sha256::new(), 0);
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = stdout.read(&mut buffer).context("cannot read from the container")?;
        if read == 0 {
            break;
        }
        received.update(&buffer[..read]);
        let tenth = count * 10 / SIZE;
        count += read;
        if count * 10 / SIZE > tenth {
            eprintln!("{} MB of 100", count / CHUNK);
        }
    }
    let status = child.wait().context("cannot wait for bulkhead")?;
    let sent = match writer.join() {
        Ok(sent) => sent?.finalize(),
        Err(_) => anyhow::bail!("the writer panicked"),
    };
    let received = received.finalize();
    ensure!(status.success(), "bulkhead ended with {status}");
    ensure!(count == SIZE, "{count} bytes came back");
    ensure!(sent == received, "the checksums differ");
    let sum: String = received.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("SHA-256 {sum}… on both sides"))
}
