//! A tree that the host changes under a guest that walks it: directories and links are removed,
//! renamed and replaced by each other, and nothing that lies outside is ever reached.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bulkhead_tests::disk::Ext4;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::room::{add_program, bind, probe, start, wait_for, with_usr};

/// What files outside of the tree hold.
const SECRET: &str = "not for the guest";
/// Changes of the host, and walks of the guest, that the test sees done before it ends.
const CHANGES: u64 = 1_000;
const WALKS: u64 = 10;
/// Directories that change places.
const PLACES: u64 = 4;
/// What a walk may meet in a tree that changes: ENOENT, EACCES (a name planted before is only
/// readable), EEXIST, ENOTDIR, EISDIR, EINVAL, ELOOP, ESTALE.
const EXPECTED: [i32; 8] = [2, 13, 17, 20, 21, 22, 40, 116];

/// The host's side.
struct Host {
    tree: PathBuf,
    outside: PathBuf,
    /// Beside the tree: where what was taken out waits to be put back.
    aside: PathBuf,
    number: u64,
}

impl Host {
    fn new(disk: &Path) -> Self {
        let (tree, outside, aside) = (disk.join("tree"), disk.join("outside"), disk.join("aside"));
        for directory in [&tree, &outside, &aside] {
            fs::create_dir(directory).expect("a directory");
        }
        fs::write(outside.join("secret"), SECRET).expect("a file");
        fs::create_dir_all(outside.join("a/b")).expect("a directory");
        fs::write(outside.join("a/b/file"), SECRET).expect("a file");
        let host = Self { tree, outside, aside, number: 1 };
        (0..PLACES).for_each(|place| host.fill(&host.place(place)));
        host
    }

    /// The next of a fixed sequence of numbers, below `bound` (Knuth's MMIX generator).
    fn below(&mut self, bound: u64) -> u64 {
        self.number = self
            .number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.number >> 33) % bound
    }

    fn place(&self, number: u64) -> PathBuf {
        self.tree.join(format!("d{number}"))
    }

    /// A directory as the tree has it, with names that lie outside too.
    fn fill(&self, directory: &Path) {
        fs::create_dir_all(directory.join("a/b")).expect("a directory");
        for name in ["secret", "a/b/file"] {
            fs::write(directory.join(name), "inside").expect("a file");
        }
    }

    /// A link to the outside: absolute, or relative from where it is.
    fn link(&mut self, target: &str, at: &Path) {
        let absolute = self.outside.join(target);
        let relative = Path::new("../outside").join(target);
        let deep = Path::new("../../../outside").join(target);
        let target = [absolute, relative, deep][self.below(3) as usize].clone();
        symlink(target, at).expect("a link");
    }

    /// One change. The guest plants files all the time, so that a directory may not be empty.
    fn change(&mut self) {
        let place = self.below(PLACES);
        let place = self.place(place);
        let other = self.below(PLACES);
        let other = self.place(other);
        let spare = self.aside.join("spare");
        let exchange = |a: &Path, b: &Path| {
            renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).expect("exchanged");
        };
        match self.below(6) {
            // The directory and a link are the same name at alternate moments.
            0 => {
                self.link("", &spare);
                for _ in 0..4 {
                    exchange(&place, &spare);
                }
                fs::remove_file(&spare).expect("removed");
            }
            // The same one level below.
            1 => {
                self.link("a", &spare);
                for _ in 0..4 {
                    exchange(&place.join("a"), &spare);
                }
                fs::remove_file(&spare).expect("removed");
            }
            // A file and a link.
            2 => {
                self.link("secret", &spare);
                for _ in 0..4 {
                    exchange(&place.join("secret"), &spare);
                }
                fs::remove_file(&spare).expect("removed");
            }
            // Out of the tree and back, with a link in its place meanwhile.
            3 => {
                fs::rename(&place, &spare).expect("renamed");
                self.link("", &place);
                fs::remove_file(&place).expect("removed");
                fs::rename(&spare, &place).expect("renamed");
            }
            4 if place != other => exchange(&place, &other),
            _ => {
                fs::rename(&place, &spare).expect("renamed");
                self.fill(&place);
                remove(&spare);
            }
        }
    }

    /// Names and contents outside.
    fn outside(&self) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        let mut found = vec![];
        let mut left = vec![self.outside.clone()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                match path.is_dir() {
                    true => {
                        found.push((path.clone(), None));
                        left.push(path);
                    }
                    false => found.push((path.clone(), fs::read(path).ok())),
                }
            }
        }
        found.sort();
        found
    }
}

/// Removes a tree into which the guest may still plant.
fn remove(path: &Path) {
    wait_for("the removal of a directory", || match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    });
}

/// Rounds, files read, secrets seen, as the walk tells.
fn progress(stable: &Path) -> Result<[u64; 3], String> {
    let text = fs::read_to_string(stable.join("progress")).map_err(|error| error.to_string())?;
    let numbers: Vec<u64> = text.split(' ').filter_map(|number| number.parse().ok()).collect();
    numbers.try_into().map_err(|_| text)
}

/// Ends both sides, also when the test fails.
struct Stop<'a>(&'a Path, &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        // Without it the walk goes on until the container is deleted.
        let _ = fs::write(self.0.join("stop"), "");
        self.1.store(true, Ordering::Relaxed);
    }
}

#[test]
fn walk_over_a_tree_that_changes_never_leaves_it() {
    let disk = Ext4::new(64);
    let mut host = Host::new(&disk.path());
    let stable = disk.directory("stable");
    let before = host.outside();
    let mut bundle = with_usr();
    add_program(&bundle, probe(), "program");
    bind(&mut bundle, &host.tree, "/tree", &["rbind", "rw"]);
    bind(&mut bundle, &stable, "/stable", &["rbind", "rw"]);
    let guest = start(bundle);
    let (changes, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let walk = ["/program", "walk", "/tree", "/stable", SECRET];
    let outcome = std::thread::scope(|scope| {
        let walker = scope.spawn(|| guest.command(&["exec"], &walk));
        scope.spawn(|| {
            // The walk has an end, whatever becomes of this thread.
            let _stop = Stop(&stable, &stop);
            while !stop.load(Ordering::Relaxed) {
                host.change();
                changes.fetch_add(1, Ordering::Relaxed);
            }
        });
        let ended = Stop(&stable, &stop);
        wait_for("enough changes and walks", || {
            let [walks, ..] = progress(&stable)?;
            let changes = changes.load(Ordering::Relaxed);
            let enough = changes >= CHANGES && walks >= WALKS;
            enough.then_some(()).ok_or_else(|| format!("{changes} changes, {walks} walks"))
        });
        drop(ended);
        walker.join().expect("the walker")
    });
    let outcome = outcome.expect(0);
    let [walks, files, secrets] = progress(&stable).expect("progress");
    println!("{walks} walks, {files} files, {}", outcome.text().replace('\n', ", "));
    assert_eq!(secrets, 0, "files from outside were read");
    assert!(files >= walks, "{files} files in {walks} walks: nothing was read");
    assert_eq!(host.outside(), before, "something outside was changed");
    for line in outcome.text().lines() {
        let errno = line.split(' ').next().and_then(|errno| errno.parse().ok());
        assert!(errno.is_some_and(|errno| EXPECTED.contains(&errno)), "{}", outcome.text());
    }
    // The guest works on.
    guest.command(&["exec"], &["/bin/ls", "/tree"]).expect(0);
}
