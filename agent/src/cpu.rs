//! Taking CPUs of the guest into use and out of it (Documentation/core-api/cpu_hotplug.rst).
//!
//! The machine has as many as it may ever use; those behind the first ones are started when the
//! host says so.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// One directory for each CPU.
const CPUS: &str = "/sys/devices/system/cpu";

/// Why CPUs are not as asked for.
#[derive(Debug, Error)]
pub enum CpuError {
    /// Fewer than one, or more than the machine has.
    #[error("{count} CPUs on-line (1 to {present} can be)")]
    Count {
        /// Asked for.
        count: u32,
        /// What the machine has.
        present: u32,
    },
    /// Listing them.
    #[error("list {CPUS}: {0}")]
    List(#[source] io::Error),
    /// The kernel refuses.
    #[error("switch CPU {cpu} {}: {source}", if *.on { "on" } else { "off" })]
    Switch {
        /// Its number.
        cpu: u32,
        /// Which way.
        on: bool,
        /// Why.
        source: io::Error,
    },
}

/// Has the first `count` CPUs on-line, and no others. CPUs that were switched stay so when a
/// later one fails: the next call begins from there.
pub fn online(count: u32) -> Result<(), CpuError> {
    switch(Path::new(CPUS), count)
}

fn switch(root: &Path, count: u32) -> Result<(), CpuError> {
    let present = present(root).map_err(CpuError::List)?;
    if !(1..=present).contains(&count) {
        return Err(CpuError::Count { count, present });
    }
    // The first one cannot be switched, and always is on.
    for cpu in 1..present {
        let on = cpu < count;
        let file = file(root, cpu);
        let wanted = if on { "1" } else { "0" };
        let failed = |source| CpuError::Switch { cpu, on, source };
        if fs::read_to_string(&file).map_err(failed)?.trim() != wanted {
            fs::write(&file, wanted).map_err(failed)?;
        }
    }
    Ok(())
}

/// How many CPUs there are: their numbers have no gaps.
fn present(root: &Path) -> io::Result<u32> {
    fs::metadata(root.join("cpu0"))?;
    let mut count = 1;
    while file(root, count).exists() {
        count += 1;
    }
    Ok(count)
}

fn file(root: &Path, cpu: u32) -> PathBuf {
    root.join(format!("cpu{cpu}/online"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPUs with these states, the first without a file.
    fn cpus(states: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("cpu0")).unwrap();
        for (cpu, state) in (1..).zip(states) {
            let file = file(root.path(), cpu);
            fs::create_dir(file.parent().unwrap()).unwrap();
            fs::write(file, state).unwrap();
        }
        root
    }

    fn states(root: &Path, count: u32) -> Vec<String> {
        (1..count).map(|cpu| fs::read_to_string(file(root, cpu)).unwrap()).collect()
    }

    #[test]
    fn first_cpus_are_on_and_the_others_off() {
        let root = cpus(&["1\n", "0\n", "1\n"]);
        switch(root.path(), 3).unwrap();
        assert_eq!(states(root.path(), 4), ["1\n", "1", "0"]);
        switch(root.path(), 1).unwrap();
        assert_eq!(states(root.path(), 4), ["0", "0", "0"]);
    }

    #[test]
    fn count_that_cannot_be_is_refused() {
        let root = cpus(&["0"]);
        for count in [0, 3, u32::MAX] {
            let refused = switch(root.path(), count);
            assert!(matches!(refused, Err(CpuError::Count { present: 2, .. })), "{count}");
        }
        assert_eq!(states(root.path(), 2), ["0"]);
    }
}
