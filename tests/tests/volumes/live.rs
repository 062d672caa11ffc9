//! A share while both sides use it: what each sees of the other, and what goes wrong underneath.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use bulkhead_tests::disk::{Ext4, Mounted};
use bulkhead_tests::{Bundle, Created};

use crate::room::{bind, privileged, shell, start, wait_for};

/// A container that sleeps, with `source` as its `/share`.
fn sharing(source: &Path) -> Created {
    let mut bundle = Bundle::new(&["/bin/sleep", "100000"]);
    privileged(&mut bundle);
    bind(&mut bundle, source, "/share", &["rbind", "rw"]);
    start(bundle)
}

/// A loop of a shell that ends with an error after a long time.
fn until(condition: &str) -> String {
    format!("i=0; until {condition}; do sleep 0.1; i=$((i + 1)); [ $i -lt 3000 ] || exit 9; done")
}

#[track_caller]
fn says(container: &Created, script: &str, expected: &str) {
    let outcome = shell(container, script);
    assert_eq!(outcome.text(), expected, "{script}: {}", outcome.stderr);
}

#[test]
fn change_of_the_host_is_seen_at_the_next_open() {
    let source = tempfile::tempdir().expect("a directory");
    let at = |name: &str| source.path().join(name);
    let write = |name: &str, text: &str| fs::write(at(name), text).expect("a file");
    fs::create_dir(at("dir")).expect("a directory");
    write("file", "one");
    write("dir/inside", "inside");
    let guest = sharing(source.path());
    says(
        &guest,
        "cat /share/file; ls /share; cat /share/none 2>&1 || true",
        "onedir\nfile\ncat: can't open '/share/none': No such file or directory",
    );
    // The same length, and shorter; a name that was looked for and not found; one that is gone.
    write("file", "two");
    write("none", "here");
    says(&guest, "cat /share/file /share/none", "twohere");
    write("file", "3");
    fs::remove_file(at("none")).expect("removed");
    says(&guest, "cat /share/file; stat -c %s /share/file; ls /share", "31\ndir\nfile");
    // Another file under the name, as editors save.
    write("saved", "another file");
    fs::rename(at("saved"), at("file")).expect("renamed");
    symlink("file", at("link")).expect("a link");
    says(&guest, "cat /share/file /share/link", "another fileanother file");
    // A file that the guest has open all the time (busybox's cat would splice, which asks nobody
    // for the length).
    let open = &format!(
        "exec 3< /share/file; cat <&3; echo; touch /share/ready; {}",
        until("dd bs=64 <&3 2>/dev/null | grep more")
    );
    let reader = std::thread::scope(|scope| {
        let reader = scope.spawn(|| shell(&guest, open));
        wait_for("the reader", || at("ready").exists().then_some(()).ok_or("not ready".into()));
        let mut file = fs::File::options().append(true).open(at("file")).expect("open");
        std::io::Write::write_all(&mut file, b" and more\n").expect("written");
        reader.join().expect("the reader")
    });
    assert_eq!(reader.expect(0).text(), "another file\n and more");
    // Directories are believed for a second.
    fs::rename(at("dir"), at("moved")).expect("renamed");
    wait_for("the directory's new name", || {
        let listed = shell(&guest, "cat /share/moved/inside; ls -d /share/dir").text();
        (listed == "inside").then_some(()).ok_or(listed)
    });
    // What the guest does, the host sees at once.
    says(&guest, "echo guest > /share/new; mv /share/new /share/moved/back; rm /share/link", "");
    assert_eq!(fs::read_to_string(at("moved/back")).expect("the guest's"), "guest\n");
    assert!(!at("link").exists());
    // A mount that the host makes later stays outside.
    let late = Mounted::new(&["-t", "tmpfs", "tmpfs"], &at("moved"));
    says(&guest, "cat /share/moved/inside", "inside");
    drop(late);
}

#[test]
fn share_that_is_removed_is_an_error_inside_and_no_end() {
    let scratch = tempfile::tempdir().expect("a directory");
    let source = scratch.path().join("source");
    fs::create_dir_all(source.join("below")).expect("a directory");
    fs::write(source.join("file"), "content").expect("a file");
    let guest = sharing(&source);
    let hold = &format!(
        "cd /share/below; exec 3< /share/file; touch /share/ready; {}; cat <&3; echo; ls; \
         touch new 2>&1; touch /share/new 2>&1; ls /share",
        until("[ -e /tmp/go ]")
    );
    let said = std::thread::scope(|scope| {
        let holder = scope.spawn(|| shell(&guest, hold));
        let ready = source.join("ready");
        wait_for("the holder", || ready.exists().then_some(()).ok_or("not ready".into()));
        fs::remove_dir_all(&source).expect("removed");
        shell(&guest, "touch /tmp/go").expect(0);
        holder.join().expect("the holder").text()
    });
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "content", "{said}");
    assert_eq!(said.matches("No such file or directory").count(), 2, "{said}");
    // Another directory under the name is another directory.
    fs::create_dir(&source).expect("a directory");
    fs::write(source.join("other"), "").expect("a file");
    says(&guest, "ls /share; echo alive", "alive");
}

#[test]
fn full_disk_is_an_error_and_space_that_comes_back_is_used() {
    let disk = Ext4::new(16);
    let share = disk.directory("share");
    let guest = sharing(&share);
    let fill = "dd if=/dev/zero of=/share/file bs=64k 2>&1 | grep -o 'No space left on device'; \
                sync; echo $?; head -c 100000 /dev/urandom > /share/more; echo $?; \
                mkdir /share/d; echo end";
    let outcome = shell(&guest, fill);
    let text = outcome.text();
    assert!(text.starts_with("No space left on device\n0\n1\n"), "{text}: {}", outcome.stderr);
    assert!(text.ends_with("end"), "{text}");
    fs::remove_file(share.join("file")).expect("removed");
    let data = "dd if=/dev/zero bs=64k count=64 2>/dev/null | tee /share/again | md5sum; \
                md5sum < /share/again; echo x > /share/more; cat /share/more";
    let text = shell(&guest, data).expect(0).text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0] == lines[1] && lines[2] == "x", "{text}");
    says(&guest, "rm /share/again; echo alive", "alive");
}
