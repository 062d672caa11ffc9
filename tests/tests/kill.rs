//! Kills a random process of a sandbox at a random moment of its life, many times over, then
//! asks `delete --force` to clean up and looks for what is left.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use bulkhead_tests::{Bundle, Leftovers, bulkhead, run, unique_id};

/// Cycles without `BULKHEAD_KILL_CYCLES`: the part that gates. The whole suite has a thousand.
const QUICK_CYCLES: u32 = 25;

/// xorshift64*: the moments differ from run to run, and a failing run prints its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// The descendants of `root`, itself first.
fn family(root: i32) -> Vec<i32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let after = stat.rsplit(") ").next().unwrap_or_default();
        let parent = after.split(' ').nth(1).and_then(|text| text.parse::<i32>().ok());
        parents.push((pid, parent.unwrap_or(0)));
    }
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

fn start(bundle: &Bundle, id: &str) -> Child {
    bulkhead()
        .args(["run", "--bundle"])
        .arg(bundle.path())
        .arg(id)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("bulkhead starts")
}

#[test]
fn killed_sandboxes_leave_nothing_behind() {
    let cycles = number("BULKHEAD_KILL_CYCLES").unwrap_or(u64::from(QUICK_CYCLES));
    let boot_ms = number("BULKHEAD_KILL_SPAN_MS").unwrap_or(6000);
    let seed = number("BULKHEAD_KILL_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("after 1970").subsec_nanos().into()
    });
    println!("seed {seed}, {cycles} cycles");
    let mut random = Random(seed | 1);
    let bundle = Bundle::script("while :; do echo x > /tmp/x; sleep 0.05; done");
    for cycle in 0..cycles {
        let before = Leftovers::now();
        let id = unique_id("kill");
        let mut child = start(&bundle, &id);
        // The random moment is what is tested; nothing waits for it.
        std::thread::sleep(Duration::from_millis(random.below(boot_ms)));
        let family = family(child.id() as i32);
        let victim = family[random.below(family.len() as u64) as usize];
        let pid = rustix::process::Pid::from_raw(victim).expect("not 0");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        let deleted = run(bulkhead().args(["delete", "--force", &id]));
        assert_eq!(deleted.code, 0, "cycle {cycle}, seed {seed}: {}", deleted.stderr);
        child.wait().expect("ended");
        before.assert_none();
    }
}
