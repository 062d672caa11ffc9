//! Each attack listed in `tree` has its test here. The layer is unpacked into `inner` of a
//! directory that also holds a file; whatever happens, nothing but `inner` may have changed.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::CWD;
use tar::EntryType;
use tempfile::TempDir;

use super::*;
use crate::image::tar::skip_by_reading;
use crate::image::testing::TarStream;
use crate::privilege::is_root;

struct Bytes<'a>(&'a [u8]);

impl Read for Bytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl SkipRead for Bytes<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        skip_by_reading(self, bytes)
    }
}

/// A directory with a file outside, and the tree.
struct Box(TempDir);

const SECRET: &[u8] = b"outside";

impl Box {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["inner", "outer"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("outer/secret"), SECRET).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("inner").join(name)
    }

    fn outer(&self) -> String {
        self.0.path().join("outer").to_str().unwrap().to_owned()
    }

    fn unpack(&self, tar: &[u8]) -> Result<(), UnpackError> {
        self.unpack_within(tar, &Budget::new(1 << 30))
    }

    fn unpack_within(&self, tar: &[u8], budget: &Budget) -> Result<(), UnpackError> {
        let open = |name: &str| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            fs::openat(CWD, self.0.path().join(name), flags, Mode::empty()).unwrap()
        };
        let result = unpack(Bytes(tar), open("inner"), budget).map(drop);
        self.check_outside();
        result
    }

    /// Nothing outside `inner` was made, removed, changed or linked to.
    fn check_outside(&self) {
        let list = |path: &Path| {
            let entries = std::fs::read_dir(path).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(list(self.0.path()), ["inner", "outer"]);
        assert_eq!(list(&self.0.path().join("outer")), ["secret"]);
        let secret = self.0.path().join("outer/secret");
        assert_eq!(std::fs::read(&secret).unwrap(), SECRET);
        let metadata = std::fs::metadata(&secret).unwrap();
        assert_eq!((metadata.nlink(), metadata.mode() & 0o7777), (1, 0o644));
    }

    fn is_whiteout(&self, name: &str) -> bool {
        let metadata = std::fs::symlink_metadata(self.path(name)).unwrap();
        metadata.file_type().is_char_device() && metadata.rdev() == 0
    }

    fn is_opaque(&self, name: &str) -> bool {
        self.xattr(name, "trusted.overlay.opaque") == Some(b"y".to_vec())
    }

    fn xattr(&self, name: &str, attribute: &str) -> Option<Vec<u8>> {
        let mut buffer = [0; 256];
        let length = fs::lgetxattr(self.path(name), attribute, &mut buffer).ok()?;
        Some(buffer[..length].to_vec())
    }
}

#[test]
fn layer_with_all_kinds_keeps_what_the_archive_says() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    let mut suid = TarStream::header(EntryType::Regular, b"bin/su", b"", 2);
    suid.set_mode(0o4755);
    suid.set_uid(7);
    suid.set_gid(8);
    let mut device = TarStream::header(EntryType::Char, b"null", b"", 0);
    device.set_mode(0o666);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    let mut sticky = TarStream::header(EntryType::Directory, b"tmp/", b"", 0);
    sticky.set_mode(0o1777);
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tar = TarStream::new()
        .dir("./")
        .dir("bin/")
        .add(suid, b"su")
        .hard_link("bin/sudo", "bin/su")
        .symlink("sbin", "bin")
        .add(device, b"")
        .entry(EntryType::Fifo, "fifo", "", b"")
        .add(sticky, b"")
        .pax(&[("SCHILY.xattr.security.capability", capability), ("mtime", b"12.5")])
        .file("bin/ping", b"ping")
        .finish();
    tree.unpack(&tar).unwrap();
    let su = std::fs::metadata(tree.path("bin/su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.nlink()), (0o4755, 7, 8, 2));
    assert_eq!(std::fs::metadata(tree.path("bin/sudo")).unwrap().ino(), su.ino());
    assert_eq!(std::fs::read_link(tree.path("sbin")).unwrap(), Path::new("bin"));
    let null = std::fs::symlink_metadata(tree.path("null")).unwrap();
    assert_eq!((null.rdev(), null.mode() & 0o7777), (fs::makedev(1, 3), 0o666));
    assert!(std::fs::symlink_metadata(tree.path("fifo")).unwrap().file_type().is_fifo());
    assert_eq!(std::fs::metadata(tree.path("tmp")).unwrap().mode() & 0o7777, 0o1777);
    let ping = std::fs::metadata(tree.path("bin/ping")).unwrap();
    assert_eq!((ping.mtime(), ping.mtime_nsec()), (12, 500_000_000));
    assert_eq!(tree.xattr("bin/ping", "security.capability").unwrap(), capability);
    for directory in ["", "bin", "tmp"] {
        assert_eq!(std::fs::metadata(tree.path(directory)).unwrap().mtime(), 1_000_000_000);
    }
}

#[test]
fn sparse_member_keeps_its_holes() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    let records: [(&str, &[u8]); 2] =
        [("GNU.sparse.size", b"104857600"), ("GNU.sparse.map", b"0,3,104857590,2")];
    tree.unpack(&TarStream::new().pax(&records).file("f", b"abcde").finish()).unwrap();
    let metadata = std::fs::metadata(tree.path("f")).unwrap();
    assert_eq!(metadata.size(), 104_857_600);
    assert!(metadata.blocks() < 1000, "{} blocks", metadata.blocks());
    let content = std::fs::read(tree.path("f")).unwrap();
    assert_eq!((&content[..3], &content[104_857_590..104_857_592]), (&b"abc"[..], &b"de"[..]));
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    let tar = TarStream::new()
        .dir("d/")
        .file("d/.wh.gone", b"")
        .file(".wh.gone too", b"")
        .dir("o/")
        .file("o/.wh..wh..opq", b"")
        .dir(".wh..wh.plnk/")
        .file(".wh..wh.plnk/17.42", b"")
        .file(".wh..wh.aufs", b"")
        .finish();
    tree.unpack(&tar).unwrap();
    assert!(tree.is_whiteout("d/gone"));
    assert!(tree.is_whiteout("gone too"));
    assert!(tree.is_opaque("o"));
    assert!(!tree.is_opaque("d"));
    assert_eq!(std::fs::read_dir(tree.path("")).unwrap().count(), 3);
}

#[test]
fn member_of_the_same_layer_wins_over_a_whiteout_in_any_order() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    let tar = TarStream::new()
        .file(".wh.f1", b"")
        .file("f1", b"1")
        .file("f2", b"2")
        .file(".wh.f2", b"")
        .file(".wh.d1", b"")
        .dir("d1/")
        .dir("d2/")
        .file(".wh.d2", b"")
        .file(".wh.d3", b"")
        .file("d3/sub/f", b"3")
        .finish();
    tree.unpack(&tar).unwrap();
    for (name, content) in [("f1", "1"), ("f2", "2"), ("d3/sub/f", "3")] {
        assert_eq!(std::fs::read_to_string(tree.path(name)).unwrap(), content);
    }
    for directory in ["d1", "d2", "d3"] {
        assert!(tree.is_opaque(directory), "{directory} must go on hiding what is below");
    }
}

#[test]
fn whiteout_of_dot_or_dot_dot_is_refused() {
    if !is_root() {
        return;
    }
    for name in [".wh.", ".wh..", ".wh...", "d/.wh...", "d/.wh..", "d/.wh."] {
        let tree = Box::new();
        let tar = TarStream::new().dir("d/").file("d/keep", b"").file(name, b"").finish();
        assert!(matches!(tree.unpack(&tar), Err(UnpackError::Whiteout(_))), "{name}");
        assert!(tree.path("d/keep").exists(), "{name}");
    }
}

#[test]
fn path_that_climbs_is_refused() {
    for path in ["../outer/secret", "a/../../outer/secret", "/../outer/new", "..", "a/.."] {
        let tree = Box::new();
        for tar in [
            TarStream::new().file(path, b"x"),
            TarStream::new().dir(path),
            TarStream::new().symlink(path, "x"),
        ] {
            let result = tree.unpack(&tar.finish());
            assert!(matches!(result, Err(UnpackError::Climbs(_))), "{path}: {result:?}");
        }
    }
}

#[test]
fn absolute_path_is_below_the_root() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    tree.unpack(&TarStream::new().file("//etc/f", b"x").finish()).unwrap();
    assert_eq!(std::fs::read(tree.path("etc/f")).unwrap(), b"x");
}

#[test]
fn symlink_in_the_path_leads_nowhere_outside() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    let outer = tree.outer();
    for target in ["../outer", "../../../../../../../..", outer.as_str(), "/"] {
        let tree = Box::new();
        let tar = TarStream::new().symlink("x", target).file("x/secret", b"overwritten").finish();
        // Inside the tree the target may not exist, which is an error; it may also be the
        // root, which is not.
        let _ = tree.unpack(&tar);
        let target = std::fs::read_link(tree.path("x")).unwrap();
        assert!(!target.as_os_str().is_empty());
    }
}

#[test]
fn symlink_in_the_path_works_as_inside_the_container() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    let tar = TarStream::new()
        .dir("usr/lib/")
        .symlink("lib", "/usr/lib")
        .symlink("up", "../../usr")
        .file("lib/f", b"1")
        .file("up/lib/new/g", b"2")
        .finish();
    tree.unpack(&tar).unwrap();
    assert_eq!(std::fs::read(tree.path("usr/lib/f")).unwrap(), b"1");
    assert_eq!(std::fs::read(tree.path("usr/lib/new/g")).unwrap(), b"2");
    assert!(std::fs::symlink_metadata(tree.path("lib")).unwrap().is_symlink());
}

#[test]
fn symlink_as_the_last_component_is_replaced_not_followed() {
    if !is_root() {
        return;
    }
    for kind in [EntryType::Regular, EntryType::Directory, EntryType::Fifo, EntryType::Char] {
        let tree = Box::new();
        let secret = format!("{}/secret", tree.outer());
        for target in [secret.as_str(), "../outer/secret", "../outer"] {
            let tar = TarStream::new().symlink("x", target).entry(kind, "x", "", b"").finish();
            tree.unpack(&tar).unwrap();
            assert!(!std::fs::symlink_metadata(tree.path("x")).unwrap().is_symlink());
        }
    }
}

#[test]
fn directory_swapped_for_a_symlink_between_members_is_not_used() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    let outer = tree.outer();
    let tar = TarStream::new()
        .file("d/first", b"1")
        .symlink("d", &outer)
        .file("d/secret", b"overwritten")
        .finish();
    // The link's target does not exist inside the tree.
    assert!(matches!(tree.unpack(&tar), Err(UnpackError::Make { .. })));
    let tree = Box::new();
    let tar = TarStream::new()
        .file("d/first", b"1")
        .dir("e/")
        .symlink("d", "e")
        .file("d/second", b"2")
        .finish();
    tree.unpack(&tar).unwrap();
    assert_eq!(std::fs::read(tree.path("e/second")).unwrap(), b"2");
    assert!(!tree.path("e/first").exists());
}

#[test]
fn link_replaced_through_itself_is_not_remembered() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    let tar = TarStream::new().symlink("s", ".").dir("s/s/").file("s/f", b"x").finish();
    tree.unpack(&tar).unwrap();
    assert!(tree.path("s/f").exists() && !tree.path("f").exists());
}

#[test]
fn hard_link_out_of_the_tree_is_refused() {
    let tree = Box::new();
    let secret = format!("{}/secret", tree.outer());
    for target in [secret.as_str(), "../outer/secret", "missing", "/", "."] {
        let result = tree.unpack(&TarStream::new().hard_link("h", target).finish());
        assert!(
            matches!(result, Err(UnpackError::LinkTarget { .. } | UnpackError::Climbs(_))),
            "{target}: {result:?}"
        );
        assert!(!tree.path("h").exists());
    }
}

#[test]
fn hard_link_through_or_to_a_symlink_stays_inside() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    let outer = tree.outer();
    // Through a link as directory: the target is looked for inside.
    let tar = TarStream::new().symlink("d", &outer).hard_link("h", "d/secret").finish();
    assert!(matches!(tree.unpack(&tar), Err(UnpackError::LinkTarget { .. })));
    // To a link: it is the link that gets a second name, and writing to that replaces it.
    let tree = Box::new();
    let secret = format!("{}/secret", tree.outer());
    let tar = TarStream::new()
        .symlink("s", &secret)
        .hard_link("h", "s")
        .file("h", b"overwritten")
        .finish();
    tree.unpack(&tar).unwrap();
    assert_eq!(std::fs::read(tree.path("h")).unwrap(), b"overwritten");
    assert!(std::fs::symlink_metadata(tree.path("s")).unwrap().is_symlink());
}

#[test]
fn hard_link_to_itself_changes_nothing() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    tree.unpack(&TarStream::new().file("f", b"x").hard_link("f", "f").finish()).unwrap();
    assert_eq!(std::fs::read(tree.path("f")).unwrap(), b"x");
}

#[test]
fn proc_links_are_not_followed() {
    if !is_root() {
        return;
    }
    // A tree that already holds a magic link cannot come from an archive; a mount could be
    // there by mistake. Neither is crossed.
    let tree = Box::new();
    symlink("/proc/self/root", tree.path("magic")).unwrap();
    let path = format!("magic{}/escaped", tree.outer());
    assert!(tree.unpack(&TarStream::new().file(&path, b"x").finish()).is_err());
}

#[test]
fn repeated_member_is_the_last_one() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    let tar = TarStream::new()
        .dir("d/")
        .file("d/deep/f", b"1")
        .file("d", b"file now")
        .file("f", b"1")
        .file("f", b"22")
        .file("g", b"1")
        .dir("g/")
        .finish();
    tree.unpack(&tar).unwrap();
    assert_eq!(std::fs::read(tree.path("d")).unwrap(), b"file now");
    assert_eq!(std::fs::read(tree.path("f")).unwrap(), b"22");
    assert!(tree.path("g").is_dir());
}

#[test]
fn file_as_a_directory_of_the_path_is_refused() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    let tar = TarStream::new().file("f", b"").file("f/g", b"").finish();
    assert!(matches!(tree.unpack(&tar), Err(UnpackError::Make { .. })));
}

#[test]
fn root_that_is_not_a_directory_is_refused() {
    let tree = Box::new();
    for tar in [TarStream::new().file("/", b""), TarStream::new().symlink("./", "x")] {
        assert!(matches!(tree.unpack(&tar.finish()), Err(UnpackError::Root(_))));
    }
}

#[test]
fn forged_attributes_of_overlayfs_are_refused() {
    let names = ["overlay.redirect", "overlay.opaque", "overlay.metacopy", "overlay.origin", "x"];
    for name in names {
        for member in [TarStream::dir, TarStream::program_of_nothing] {
            let tree = Box::new();
            let key = format!("SCHILY.xattr.trusted.{name}");
            let tar = member(TarStream::new().pax(&[(&key, b"/etc")]), "m");
            let result = tree.unpack(&tar.finish());
            assert!(matches!(result, Err(UnpackError::Attribute { .. })), "{name}: {result:?}");
        }
    }
}

#[test]
fn labels_of_other_security_modules_are_left_out() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    let records: [(&str, &[u8]); 2] =
        [("SCHILY.xattr.security.selinux", b"evil_t"), ("SCHILY.xattr.user.note", b"kept")];
    tree.unpack(&TarStream::new().pax(&records).file("f", b"").finish()).unwrap();
    assert_eq!(tree.xattr("f", "security.selinux"), None);
    assert_eq!(tree.xattr("f", "user.note").unwrap(), b"kept");
}

#[test]
fn image_beyond_the_bounds_is_refused() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    // Directories on the way count: one member can make two thousand.
    let path = "a/".repeat(2000) + "f";
    let deep = |n: u64| {
        let budget = Budget::new(1);
        for _ in 0..budget::NODES_MAX - n {
            budget.take_node().unwrap();
        }
        budget
    };
    let tar = TarStream::new().pax(&[("path", path.as_bytes())]).file("f", b"").finish();
    let result = tree.unpack_within(&tar, &deep(2000));
    assert!(matches!(result, Err(UnpackError::Budget(Exceeded::Nodes))), "{result:?}");
    let tree = Box::new();
    tree.unpack_within(&tar, &deep(2001)).unwrap();
}

#[test]
fn implicit_directories_are_open_to_all_whatever_the_umask() {
    if !is_root() {
        return;
    }
    let tree = Box::new();
    tree.unpack(&TarStream::new().file("a/b/f", b"").finish()).unwrap();
    let mode = |name| std::fs::metadata(tree.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("a"), mode("a/b")), (0o755, 0o755));
}

impl TarStream {
    fn program_of_nothing(self, path: &str) -> Self {
        self.program(path, b"")
    }
}

#[derive(Debug, Clone)]
struct Wild {
    kind: EntryType,
    path: String,
    link: String,
}

/// Paths out of few parts, so that members meet: names, links, climbing, whiteouts.
fn wild_path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        8 => prop::sample::select(vec!["a", "b", "c", "d"]),
        1 => prop::sample::select(vec![
            "..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh...", ".wh..", "outer", "secret",
        ]),
    ];
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn wild_member() -> impl Strategy<Value = Wild> {
    let kind = prop::sample::select(vec![
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Symlink,
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Fifo,
        EntryType::Char,
    ]);
    let link = prop_oneof![
        4 => wild_path(),
        1 => wild_path().prop_map(|path| format!("/{path}")),
        1 => Just("../outer".to_owned()),
        1 => Just("/".to_owned()),
        1 => Just("../outer/secret".to_owned()),
        1 => Just("/proc/self/root".to_owned()),
    ];
    (kind, wild_path(), link).prop_map(|(kind, path, link)| Wild { kind, path, link })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn members_of_any_names_never_leave_the_tree(
        members in prop::collection::vec(wild_member(), 1..24),
    ) {
        let tree = Box::new();
        // One archive each, so that an error does not hide what comes after it.
        for member in members {
            let tar = TarStream::new().entry(member.kind, &member.path, &member.link, b"");
            let _ = tree.unpack(&tar.finish());
        }
    }

    #[test]
    fn archives_of_any_members_never_leave_the_tree(
        members in prop::collection::vec(wild_member(), 1..24),
    ) {
        let tree = Box::new();
        let add = |tar: TarStream, m: &Wild| tar.entry(m.kind, &m.path, &m.link, b"");
        let _ = tree.unpack(&members.iter().fold(TarStream::new(), add).finish());
    }

    #[test]
    fn arbitrary_bytes_never_leave_the_tree(
        bytes in prop::collection::vec(any::<u8>(), 0..2048),
        changes in prop::collection::vec((0_usize..4096, any::<u8>()), 0..6),
    ) {
        let tree = Box::new();
        let _ = tree.unpack(&bytes);
        let mut tar = TarStream::new()
            .symlink("s", "../outer").file("s/secret", b"x").hard_link("h", "s/secret").finish();
        for (at, byte) in changes {
            let at = at % tar.len();
            tar[at] = byte;
        }
        let _ = tree.unpack(&tar);
    }
}
