//! For tests: what the one who runs them may do.

/// Whether tests that change owners, make devices, mounts and namespaces can run; prints why not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}
