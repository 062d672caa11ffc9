//! Names: links, renames, listings.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{Case, file, refused, same};

pub const CASES: &[Case] = &[
    ("hard_links", hard_links),
    ("rename_flags", rename_flags),
    ("rename_whiteout", rename_whiteout),
    ("rename_over_an_open_file", rename_over_an_open_file),
    ("unlinked_file", unlinked_file),
    ("removed_directory", removed_directory),
    ("unnamed_file", unnamed_file),
    ("symbolic_links", symbolic_links),
    ("long_names", long_names),
    ("listing", listing),
    ("listing_while_it_changes", listing_while_it_changes),
];

fn hard_links(dir: &Path) -> Result<()> {
    let one = file(dir, "one", b"first")?;
    let two = dir.join("two");
    fs::hard_link(&one, &two)?;
    let (a, b) = (one.metadata()?, two.metadata()?);
    same((a.ino(), a.nlink()), (b.ino(), 2), "number and links")?;
    fs::write(&two, "second")?;
    same(fs::read(&one)?, b"second".to_vec(), "content through the other name")?;
    fs::remove_file(&one)?;
    same(two.metadata()?.nlink(), 1, "links after one was removed")?;
    refused(rustix::fs::link(dir, dir.join("d")), Errno::PERM, "a link to a directory")
}

fn rename_flags(dir: &Path) -> Result<()> {
    let (a, b) = (file(dir, "a", b"a")?, file(dir, "b", b"b")?);
    let rename = |flags| renameat_with(CWD, &a, CWD, &b, flags);
    refused(rename(RenameFlags::NOREPLACE), Errno::EXIST, "NOREPLACE")?;
    rename(RenameFlags::EXCHANGE).context("EXCHANGE")?;
    same((fs::read(&a)?, fs::read(&b)?), (b"b".to_vec(), b"a".to_vec()), "exchanged")?;
    rename(RenameFlags::empty())?;
    same((a.exists(), fs::read(&b)?), (false, b"b".to_vec()), "replaced")?;
    refused(rename(RenameFlags::EXCHANGE), Errno::NOENT, "EXCHANGE of one")?;
    // A file and a directory change places, too.
    fs::create_dir(&a)?;
    rename(RenameFlags::EXCHANGE).context("EXCHANGE of a file and a directory")?;
    ensure!(a.is_file() && b.is_dir(), "kinds were not exchanged");
    refused(
        renameat_with(CWD, &b, CWD, b.join("c"), RenameFlags::empty()),
        Errno::INVAL,
        "into itself",
    )
}

fn rename_whiteout(dir: &Path) -> Result<()> {
    let (a, b) = (file(dir, "a", b"a")?, dir.join("b"));
    renameat_with(CWD, &a, CWD, &b, RenameFlags::WHITEOUT)?;
    let left = a.symlink_metadata()?;
    ensure!(left.file_type().is_char_device() && left.rdev() == 0, "no whiteout was left");
    Ok(())
}

fn rename_over_an_open_file(dir: &Path) -> Result<()> {
    let (a, b) = (file(dir, "a", b"new")?, file(dir, "b", b"old")?);
    let mut open = File::open(&b)?;
    fs::rename(&a, &b)?;
    let mut content = String::new();
    open.read_to_string(&mut content)?;
    same(content.as_str(), "old", "the file that was open")?;
    same(fs::read(&b)?, b"new".to_vec(), "the file of the name")
}

fn unlinked_file(dir: &Path) -> Result<()> {
    let path = file(dir, "gone", b"content")?;
    let mut open = File::options().read(true).write(true).open(&path)?;
    fs::remove_file(&path)?;
    same(open.metadata()?.nlink(), 0, "links")?;
    open.seek(SeekFrom::End(0))?;
    open.write_all(b" more")?;
    open.set_len(10)?;
    open.rewind()?;
    let mut content = String::new();
    open.read_to_string(&mut content)?;
    same(content.as_str(), "content mo", "content")?;
    let again = File::open(format!("/proc/self/fd/{}", open.as_raw_fd()));
    same(again.context("opened again by its descriptor")?.metadata()?.len(), 10, "length")?;
    let linked = rustix::fs::linkat(
        CWD,
        format!("/proc/self/fd/{}", open.as_raw_fd()),
        CWD,
        dir.join("back"),
        AtFlags::SYMLINK_FOLLOW,
    );
    refused(linked, Errno::NOENT, "a new name for it")
}

fn removed_directory(dir: &Path) -> Result<()> {
    let path = dir.join("d");
    fs::create_dir(&path)?;
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::open(&path, flags, Mode::empty())?;
    fs::remove_dir(&path)?;
    let made = rustix::fs::mkdirat(&open, "e", Mode::RWXU);
    refused(made, Errno::NOENT, "a directory in it")?;
    file(dir, "f", b"")?;
    refused(rustix::fs::rmdir(dir), Errno::NOTEMPTY, "one that is not empty")
}

fn unnamed_file(dir: &Path) -> Result<()> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mut open = File::from(rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?);
    open.write_all(b"content")?;
    let path = dir.join("named");
    let from = format!("/proc/self/fd/{}", open.as_raw_fd());
    rustix::fs::linkat(CWD, from, CWD, &path, AtFlags::SYMLINK_FOLLOW).context("naming it")?;
    same(fs::read(&path)?, b"content".to_vec(), "content")
}

fn symbolic_links(dir: &Path) -> Result<()> {
    file(dir, "target", b"content")?;
    symlink("target", dir.join("link"))?;
    same(fs::read(dir.join("link"))?, b"content".to_vec(), "content through a link")?;
    symlink("loop", dir.join("loop"))?;
    refused(rustix::fs::stat(dir.join("loop")), Errno::LOOP, "a loop")?;
    let long = "x/".repeat(2047);
    symlink(&long, dir.join("long"))?;
    same(fs::read_link(dir.join("long"))?, long.clone().into(), "the longest target")?;
    same(dir.join("long").symlink_metadata()?.len(), 4094, "its length")?;
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    refused(rustix::fs::open(dir.join("link"), flags, Mode::empty()), Errno::LOOP, "NOFOLLOW")?;
    fs::remove_file(dir.join("link"))?;
    symlink("elsewhere", dir.join("link"))?;
    same(fs::read_link(dir.join("link"))?, "elsewhere".into(), "a link that was replaced")
}

fn long_names(dir: &Path) -> Result<()> {
    let name = "n".repeat(255);
    file(dir, &name, b"x")?;
    same(fs::read(dir.join(&name))?, b"x".to_vec(), "content")?;
    let longer = rustix::fs::stat(dir.join(format!("{name}n")));
    refused(longer, Errno::NAMETOOLONG, "256 bytes")?;
    file(dir, "\u{fc} \n\\\"", b"y")?;
    let names: BTreeSet<_> = fs::read_dir(dir)?.flatten().map(|e| e.file_name()).collect();
    ensure!(names.contains(std::ffi::OsStr::new("\u{fc} \n\\\"")), "an odd name: {names:?}");
    Ok(())
}

/// Many names, listed twice from one open directory.
fn listing(dir: &Path) -> Result<()> {
    let wanted: BTreeSet<String> = (0..300).map(|i| format!("file-{i}")).collect();
    for name in &wanted {
        file(dir, name, b"")?;
    }
    let open = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut listed = rustix::fs::Dir::read_from(&open)?;
    for _ in 0..2 {
        let mut found = BTreeSet::new();
        while let Some(entry) = listed.read() {
            let entry = entry?;
            let name = entry.file_name().to_str()?.to_owned();
            if !name.starts_with('.') {
                same(entry.file_type(), rustix::fs::FileType::RegularFile, "kind")?;
                ensure!(found.insert(name), "listed twice: {entry:?}");
            }
        }
        same(&found, &wanted, "names")?;
        listed.rewind();
    }
    Ok(())
}

/// What is not removed is listed, once.
fn listing_while_it_changes(dir: &Path) -> Result<()> {
    for i in 0..300 {
        file(dir, &format!("file-{i}"), b"")?;
    }
    let mut found = BTreeSet::new();
    for (count, entry) in fs::read_dir(dir)?.enumerate() {
        let name = entry?.file_name().into_string().ok().context("a name that is text")?;
        ensure!(found.insert(name), "listed twice");
        if count == 0 {
            (0..300).step_by(2).try_for_each(|i| fs::remove_file(dir.join(format!("file-{i}"))))?;
        }
    }
    let missing = (1..300).step_by(2).find(|i| !found.contains(&format!("file-{i}")));
    same(missing, None, "not listed")
}
