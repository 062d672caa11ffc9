//! `bench-guest`: first process of the guests of `bench-device`. Does the work that is measured
//! and tells on the kernel log how long it took, which under the instruction clock is how many
//! instructions it was.

mod block;
mod fs;
mod marks;
mod net;
mod tree;
mod untar;

use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount};

use marks::Marks;

fn main() {
    // The kernel log is there from the start; without it nobody could be told anything.
    let mut marks = Marks::open().expect("/dev/kmsg is in the initial RAM file system");
    if let Err(error) = work(&mut marks) {
        marks.say(&format!("{error:#}"));
    }
    loop {
        std::thread::park();
    }
}

fn work(marks: &mut Marks) -> Result<()> {
    for (kind, path) in [("devtmpfs", "/dev"), ("proc", "/proc")] {
        mount(kind, path, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {path}"))?;
    }
    let suite = std::env::var("bench").context("the command line names no suite")?;
    match suite.as_str() {
        "block" => block::run(marks, Path::new("/dev/vda")),
        "fs" => fs::run(marks),
        "net" => net::run(marks),
        other => bail!("there is no suite {other}"),
    }?;
    marks.say("done");
    Ok(())
}
