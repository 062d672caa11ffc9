//! A container's place in the state directory while its supervisor lives.

use std::time::{Duration, SystemTime};

use super::oom::OomShield;
use crate::cgroup::{CgroupError, HostCgroup, Place, Planned, settings};
use crate::failure::Failure;
use crate::hooks::{Hooks, Runner};
use crate::network::NamespaceRecord;
use crate::plan::{Policy, SandboxPlan, unit_properties};
use crate::process::ProcessId;
use crate::request::SandboxOptions;
use crate::signal::Signals;
use crate::state::{ContainerDir, Record, Status, Store, timestamp};
use crate::uplink::{self, Uplink};

/// The container's directory; removed when dropped, unless it is to be kept.
pub(super) struct Claim {
    pub store: Store,
    pub dir: ContainerDir,
    pub record: Record,
    /// Runs hooks in the runtime's namespaces, wherever this process is by then.
    pub runner: Runner,
    /// The sandbox's cgroup, where the host has cgroup v2.
    pub cgroup: Option<HostCgroup>,
    /// Up while the sandbox runs, but not while hooks do: they would inherit it.
    pub shield: Option<OomShield>,
    pub keep: bool,
}

impl Claim {
    /// Records another state of the container.
    pub fn set_status(&mut self, status: Status) -> Result<(), Failure> {
        self.record.status = status;
        Ok(self.dir.write_record(&self.record)?)
    }

    /// Makes the cgroup of the sandbox, which is recorded by now, with its limits.
    pub fn make_cgroup(
        &mut self,
        planned: Option<Planned>,
        plan: &SandboxPlan,
    ) -> Result<(), Failure> {
        let Some(planned) = planned else { return Ok(()) };
        let cgroup = self.open_cgroup(planned)?;
        let has = |file: &str| cgroup.has(file);
        // Undone with the cgroup itself.
        drop(cgroup.apply(&settings::limits(&plan.host_resources, plan.mem_mib, has))?);
        self.cgroup = Some(cgroup);
        Ok(())
    }

    /// Makes the cgroup of a container in another one's microVM, which holds this process alone.
    pub fn join_cgroup(&mut self, planned: Option<Planned>) -> Result<(), Failure> {
        let Some(planned) = planned else { return Ok(()) };
        let cgroup = self.open_cgroup(planned)?;
        Ok(self.cgroup.insert(cgroup).join()?)
    }

    fn open_cgroup(&mut self, mut planned: Planned) -> Result<HostCgroup, Failure> {
        planned.make()?;
        if self.record.cgroup.as_ref() != Some(planned.record()) {
            self.record.cgroup = Some(planned.record().clone());
            self.dir.write_record(&self.record)?;
        }
        Ok(planned.open()?)
    }

    /// The failure, or the lack of memory that led to it.
    pub fn name_oom(&self, failure: Failure) -> Failure {
        let Some(limit) = self.cgroup.as_ref().and_then(HostCgroup::ran_out_of_memory) else {
            return failure;
        };
        let limit = match limit {
            Some(bytes) => format!("limit {} MiB for the whole sandbox", bytes >> 20),
            None => "the limit is that of a cgroup above its own".to_owned(),
        };
        Failure {
            cause: format!("the sandbox ran out of memory ({limit})"),
            fix: "raise linux.resources.memory.limit".to_owned(),
            code: crate::signal::exit_code(libc::SIGKILL as u32),
            ..failure
        }
    }

    /// Connects the new network namespace that this process is in with the host's, which it has
    /// come from.
    pub fn connect(
        &mut self,
        request: Option<&uplink::Request>,
    ) -> Result<Option<Uplink>, Failure> {
        let Some(request) = request else { return Ok(None) };
        let Self { dir, record, runner, .. } = self;
        let holder = record.supervisor;
        let uplink = uplink::connect(request, holder, runner.network(), |process| {
            record.children.push(process);
            Ok(dir.write_record(record)?)
        })?;
        Ok(Some(uplink))
    }

    /// Runs the hooks that make the container's surroundings ready, before its machine is made:
    /// they may populate the network namespace that this process is in.
    pub fn run_create_hooks(&self, hooks: &Hooks, signals: &mut Signals) -> Result<(), Failure> {
        let container = self.record.for_hooks(Some(self.record.supervisor.pid));
        Ok(self.runner.run_create(hooks, &container, signals)?)
    }

    /// Runs the hooks behind `start`.
    pub fn run_poststart_hooks(&mut self, hooks: &Hooks) -> Result<(), Failure> {
        let container = self.record.for_hooks(Some(self.record.supervisor.pid));
        self.shield = None;
        let ran = self.runner.run_poststart(hooks, &container);
        self.shield = Some(OomShield::up());
        Ok(ran?)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shield = None;
        if !self.keep {
            // It cannot be removed with this process in it.
            let left = self.cgroup.as_mut().map_or(Ok(()), HostCgroup::leave);
            if left.is_err() {
                return;
            }
            // What cannot be removed now, `delete --force` removes.
            let _ = self.dir.remove(&self.store, &self.record, Some(&self.runner));
        }
    }
}

/// What is recorded before anything is made.
pub(super) fn first_record(
    options: &SandboxOptions,
    plan: &SandboxPlan,
    network: Option<NamespaceRecord>,
    cgroup: Option<&Planned>,
    call_limit: Duration,
) -> Result<Record, Failure> {
    let own = ProcessId::own()
        .map_err(|e| Failure::new("preparing the supervisor", e.to_string(), "mount /proc"))?;
    let annotations = options.spec.annotations().clone().unwrap_or_default();
    Ok(Record {
        oci_version: options.spec.version().clone(),
        id: options.id.clone(),
        status: Status::Creating,
        bundle: options.bundle.clone(),
        rootfs: plan.root.source.clone(),
        created: timestamp(SystemTime::now()),
        annotations: annotations.into_iter().collect(),
        owner: rustix::process::getuid().as_raw(),
        supervisor: own,
        children: vec![],
        sandbox: None,
        network,
        cgroup: cgroup.map(|planned| planned.record().clone()),
        uplink: options.uplink.as_ref().map(|uplink| uplink.backend),
        poststop: plan.hooks.poststop.clone(),
        scratch: options.scratch.clone(),
        call_limit_s: call_limit.as_secs(),
    })
}

/// Where the sandbox's cgroup will be, if the host has cgroup v2. A host without can run what
/// asks for nothing that only its cgroups enforce.
pub(super) fn plan_cgroup(
    options: &SandboxOptions,
    plan: &SandboxPlan,
    policy: &Policy,
) -> Result<Option<Planned>, Failure> {
    let linux = options.spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
    let path = path.filter(|path| !path.as_os_str().is_empty());
    let by_systemd = options.systemd_cgroup.then_some("--systemd-cgroup");
    let needs = by_systemd
        .or(path.map(|_| "linux.cgroupsPath"))
        .or(settings::need_host(&plan.host_resources));
    let place = Place::new(path, &options.id, options.systemd_cgroup).map_err(CgroupError::from)?;
    let asked = match options.systemd_cgroup {
        true => unit_properties(options.spec.annotations().as_ref(), policy)?,
        false => vec![],
    };
    Ok(Planned::new(place, &options.id, asked, needs)?)
}
