//! Guests that comply, that cannot, and that lie.

use bulkhead_protocol::control::{BalloonStats, HotplugStats};

use super::*;

/// A moment of a guest's time.
const MOMENT: Duration = Duration::from_millis(1);

/// A guest of 256 MiB that can grow to 1024, with a clock of its own.
struct Model {
    now: Instant,
    balloon: BalloonStats,
    hotplug: HotplugStats,
    /// MiB plugged that it cannot let go.
    stuck_mib: u64,
    /// Most MiB that its balloon gets.
    balloon_max_mib: Option<u64>,
    /// MiB that it can describe.
    plug_max_mib: Option<u64>,
    asked: Vec<String>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            now: Instant::now(),
            balloon: BalloonStats::default(),
            hotplug: HotplugStats::default(),
            stuck_mib: 0,
            balloon_max_mib: None,
            plug_max_mib: None,
            asked: vec![],
        }
    }
}

impl Guest for Model {
    fn ask(&mut self, request: &Request) -> Result<(), SandboxError> {
        match *request {
            Request::Balloon { mib } => {
                self.balloon.target_bytes = u64::from(mib) * MIB;
                self.asked.push(format!("balloon {mib}"));
            }
            Request::Hotplug { mib } => {
                self.hotplug.requested_bytes = u64::from(mib) * MIB;
                self.asked.push(format!("plug {mib}"));
            }
            _ => panic!("{request:?}"),
        }
        Ok(())
    }

    fn stats(&mut self) -> Result<VmStats, SandboxError> {
        Ok(VmStats {
            balloon: Some(self.balloon),
            hotplug: Some(self.hotplug),
            ..VmStats::default()
        })
    }

    /// Each moment 32 MiB of each.
    fn wait(&mut self) -> Result<(), SandboxError> {
        self.now += MOMENT;
        let step = |now: u64, wanted: u64| match now < wanted {
            true => (now + 32 * MIB).min(wanted),
            false => now.saturating_sub(32 * MIB).max(wanted),
        };
        let balloon_max = self.balloon_max_mib.map_or(u64::MAX, |mib| mib * MIB);
        let target = self.balloon.target_bytes.min(balloon_max);
        self.balloon.actual_bytes = step(self.balloon.actual_bytes, target);
        let plug_max = self.plug_max_mib.map_or(u64::MAX, |mib| mib * MIB);
        let stuck = (self.stuck_mib * MIB).min(self.hotplug.plugged_bytes);
        let wanted = self.hotplug.requested_bytes.min(plug_max).max(stuck);
        self.hotplug.plugged_bytes = step(self.hotplug.plugged_bytes, wanted);
        Ok(())
    }

    fn now(&self) -> Instant {
        self.now
    }
}

fn resize_to(model: &mut Model, mib: u32) -> u32 {
    let size = |mem_mib| Size { mem_mib, vcpus: 1 };
    let capacity = Capacity { start: size(256), most: size(1024) };
    // A guest that does nothing any more is given a fifth of it.
    let limit = 50 * MOMENT;
    Memory { guest: model, capacity, limit }.resize(mib).unwrap()
}

#[test]
fn guest_that_complies_grows_and_shrinks_to_what_is_wanted() {
    let mut model = Model::default();
    for mib in [512, 1024, 300, 256, 128, 700, 255] {
        assert_eq!(resize_to(&mut model, mib), mib);
    }
    let expected = [
        "plug 256",
        "plug 768",
        "plug 44",
        "plug 0",
        "plug 0",
        "balloon 128",
        "balloon 0",
        "plug 444",
        "plug 0",
        "balloon 1",
    ];
    assert_eq!(model.asked, expected);
}

#[test]
fn what_cannot_be_unplugged_goes_into_the_balloon() {
    let mut model = Model { stuck_mib: 100, ..Model::default() };
    assert_eq!(resize_to(&mut model, 512), 512);
    assert_eq!(resize_to(&mut model, 256), 256);
    assert_eq!(model.asked, ["plug 256", "plug 0", "balloon 100"]);
    assert_eq!(resize_to(&mut model, 400), 400);
    assert_eq!((model.hotplug.plugged_bytes, model.balloon.actual_bytes), (144 * MIB, 0));
}

#[test]
fn guest_that_gives_no_more_keeps_it_and_is_told_so() {
    let mut model = Model { balloon_max_mib: Some(50), ..Model::default() };
    assert_eq!(resize_to(&mut model, 128), 206);
    let mut model = Model { plug_max_mib: Some(64), ..Model::default() };
    assert_eq!(resize_to(&mut model, 1024), 320);
}

#[test]
fn guest_that_lies_about_its_balloon_is_never_smaller_than_nothing() {
    let mut model = Model::default();
    model.balloon.actual_bytes = u64::MAX;
    model.balloon_max_mib = Some(u64::MAX / MIB);
    model.hotplug.plugged_bytes = u64::MAX;
    assert!(resize_to(&mut model, 128) <= 1024);
}
