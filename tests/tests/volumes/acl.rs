//! Access control lists that the host sets, and a file system of the host that has none. What a
//! guest does with lists is among the cases of `file-probe`, see `beside`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use bulkhead_tests::disk::{Ext4, Mounted};
use bulkhead_tests::{Bundle, Created, Outcome, run};

use crate::room::{add_program, bind, privileged, probe, shell, start, with_usr};

/// The user whom `file-probe help share FILE` lets read.
const USER: &str = "1001:1001";

fn as_user(container: &Created, user: &str, script: &str) -> Outcome {
    container.command(&["exec", "--user", user], &["/bin/sh", "-c", script])
}

#[test]
fn list_of_the_host_counts_at_the_next_open() {
    let disk = Ext4::new(16);
    let share = disk.directory("share");
    let file = share.join("file");
    fs::write(&file, "content").expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its mode");
    let mut bundle = Bundle::new(&["/bin/sleep", "100000"]);
    privileged(&mut bundle);
    bind(&mut bundle, &share, "/share", &["rbind", "rw"]);
    let guest = start(bundle);
    let read = |user: &str| as_user(&guest, user, "cat /share/file").text();
    assert_eq!(read(USER), "");
    run(Command::new(probe()).args(["help", "share"]).arg(&file)).expect(0);
    assert_eq!((read(USER).as_str(), read("1002:1002").as_str()), ("content", ""));
    // This takes the mask's bits from the list.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its mode");
    assert_eq!(read(USER), "");
}

/// The guest's kernel asks for a list at each open by another than the owner.
#[test]
fn file_system_without_lists_goes_by_the_mode() {
    let directory = tempfile::tempdir().expect("a directory");
    let _ramfs = Mounted::new(&["-t", "ramfs", "ramfs"], directory.path());
    let share = directory.path().join("share");
    fs::create_dir(&share).expect("a directory");
    fs::set_permissions(&share, fs::Permissions::from_mode(0o1777)).expect("its mode");
    for (name, mode) in [("file", 0o644), ("closed", 0o640), ("single", 0o664)] {
        fs::write(share.join(name), name).expect("a file");
        fs::set_permissions(share.join(name), fs::Permissions::from_mode(mode)).expect("its mode");
    }
    let mut bundle = with_usr();
    add_program(&bundle, probe(), "program");
    bind(&mut bundle, &share, "/share", &["rbind", "rw"]);
    bind(&mut bundle, &share.join("single"), "/single", &["bind", "rw"]);
    let guest = start(bundle);
    let script = "cat /share/file /single; cat /share/closed; echo $?; umask 027; echo x > \
                  /share/new; mkdir /share/dir";
    let outcome = as_user(&guest, USER, script).expect(0);
    assert_eq!(outcome.text(), "filesingle1", "{}", outcome.stderr);
    for (name, mode) in [("new", 0o640), ("dir", 0o750)] {
        let made = share.join(name).metadata().expect("what the user has made");
        assert_eq!((made.uid(), made.mode() & 0o777), (1001, mode), "{name}");
    }
    let refused = guest.command(&["exec"], &["/program", "help", "share", "/share/file"]);
    assert!(refused.stderr.contains("not supported"), "{}", refused.stderr);
    assert_eq!(shell(&guest, "cat /share/closed").text(), "closed");
}
