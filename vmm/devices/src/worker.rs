//! The one place that spawns device threads.
//!
//! A worker thread lives as long as its device. It is spawned, and its seccomp filter installed,
//! when the device is created: a thread inherits the filters of the thread that spawns it, so one
//! spawned later, by the vCPU that writes `DRIVER_OK`, could never do more than a vCPU may. Until
//! the device is activated the thread is parked.
//!
//! A worker owns what it serves: activating a device moves queues and backend into the worker's
//! [`Serve`] value; stopping gives the value back, so that a reset or a pause finds the device
//! whole again.
//!
//! One thing a filter cannot express: glibc opens a file of /proc the first time it trims the heap
//! of a thread that has an arena of its own. A process that filters its threads sets
//! `M_ARENA_MAX` to 1 before it makes any.
//!
//! Trust: what a [`Serve`] value reads from its queues is the guest's choice, so it reports errors
//! as values. A panic aborts the process in what ships (`panic = "abort"`).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

#[cfg(test)]
mod tests;

/// Bytes of stack of a worker thread. Only what is touched costs memory.
const STACK_SIZE_BYTES: usize = 256 << 10;

/// Events taken from the kernel at once.
const READY_EVENTS: usize = 32;

/// Kinds of device threads; each has a seccomp filter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThreadKind {
    /// Reads entropy from the kernel.
    Rng,
    /// Serves one block device.
    Block,
    /// Serves vsock connections.
    Vsock,
    /// Moves packets of one network interface.
    Net,
    /// Passes file requests to the file server and moves file data.
    Fs,
    /// Serves the balloon or the memory device: gives memory back to the host.
    Memory,
}

impl ThreadKind {
    /// Name of the thread, at most 15 bytes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rng => "rng",
            Self::Block => "block",
            Self::Vsock => "vsock",
            Self::Net => "net",
            Self::Fs => "fs",
            Self::Memory => "memory",
        }
    }
}

/// What a thread runs before it touches guest bytes: the monitor installs the seccomp filter of
/// the kind here. An error ends the thread before it serves anything and fails
/// [`Worker::spawn`].
pub type ThreadHook = Arc<dyn Fn(ThreadKind) -> io::Result<()> + Send + Sync>;

/// What a worker thread serves: the queues and the backend of an activated device.
///
/// All calls come from the worker thread, one at a time.
pub trait Serve: Send + 'static {
    /// Subscribes to the queue events and the descriptors of the backend, and serves what is
    /// there already. Called at each start, also after a pause.
    fn begin(&mut self, ops: &mut EventOps) -> io::Result<()>;

    /// Handles one event of a descriptor that was subscribed to.
    ///
    /// Bounded work: whatever the guest does, it returns. A descriptor must be removed from `ops`
    /// before it is closed. An error is for what the device cannot recover from; it ends serving,
    /// not the thread.
    fn serve(&mut self, event: Events, ops: &mut EventOps) -> io::Result<()>;

    /// Comes to a request boundary: nothing in flight may touch guest memory afterwards. Called
    /// before the value is given back, also after a failure. No event arrives any more.
    fn end(&mut self) {}

    /// `begin` or `serve` has failed: tell the driver, by `Interrupt::device_needs_reset`. No
    /// event arrives any more; the value waits for [`Worker::stop`].
    fn failed(&mut self, error: io::Error);
}

/// A device thread that is parked or serves an `S`.
///
/// Dropping it stops and joins the thread.
pub struct Worker<S> {
    stop: EventFd,
    /// `None` only while dropping: the thread ends when the sender is gone.
    start: Option<Sender<S>>,
    stopped: Receiver<S>,
    serving: bool,
    thread: Option<JoinHandle<()>>,
}

impl<S: Serve> Worker<S> {
    /// Spawns a parked thread of `kind`, with `hook` run, and waits for the outcome of the hook.
    pub fn spawn(kind: ThreadKind, hook: &ThreadHook) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let mut manager = EventManager::new_with_capacity(READY_EVENTS).map_err(event_error)?;
        let stopper =
            manager.add_subscriber(Subscriber::Stop { event: stop.try_clone()?, seen: false });

        let (start, starts) = channel();
        let (stops, stopped) = channel();
        let (ready, hooked) = channel();
        let hook = Arc::clone(hook);
        let body = move || {
            let outcome = hook(kind);
            let good = outcome.is_ok();
            // The spawner waits for this message.
            let _ = ready.send(outcome);
            if good {
                run(manager, stopper, &starts, &stops);
            }
        };
        let builder = Builder::new().name(kind.name().into()).stack_size(STACK_SIZE_BYTES);
        let thread = Some(builder.spawn(body)?);
        let worker = Self { stop, start: Some(start), stopped, serving: false, thread };
        match hooked.recv() {
            Ok(outcome) => outcome.map(|()| worker),
            Err(_) => Err(io::Error::other("the device thread ended before it was ready")),
        }
    }

    /// Moves `serve` into the thread, which begins to serve it.
    ///
    /// On an error, which says that the thread has ended or serves already, `serve` comes back.
    pub fn start(&mut self, serve: S) -> Result<(), S> {
        match &self.start {
            Some(start) if !self.serving => start.send(serve).map_err(|error| error.0)?,
            _ => return Err(serve),
        }
        self.serving = true;
        Ok(())
    }

    /// Stops serving at a request boundary and gives back what was served, or `None` if nothing
    /// was.
    pub fn stop(&mut self) -> Option<S> {
        if !std::mem::take(&mut self.serving) {
            return None;
        }
        // Cannot overflow: the thread reads the counter before it gives the value back.
        let _ = self.stop.write(1);
        // An error means that the thread is gone, which only a panic could cause.
        self.stopped.recv().ok()
    }

    /// Whether something is served now.
    pub fn is_serving(&self) -> bool {
        self.serving
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        if self.serving {
            let _ = self.stop.write(1);
        }
        self.start = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported by its own message; in what ships it ended the process.
            let _ = thread.join();
        }
    }
}

/// What the event manager of a worker dispatches to.
enum Subscriber<S> {
    /// The stop event, subscribed to for the life of the thread.
    Stop { event: EventFd, seen: bool },
    /// The device.
    Device { serve: S, error: Option<io::Error> },
}

impl<S: Serve> MutEventSubscriber for Subscriber<S> {
    fn init(&mut self, ops: &mut EventOps) {
        match self {
            Self::Stop { event, .. } => ops
                .add(Events::new(event, EventSet::IN))
                .expect("a new epoll set takes a new event descriptor"),
            Self::Device { serve, error } => *error = serve.begin(ops).err(),
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match self {
            Self::Stop { event, seen } => {
                *seen |= events.fd() == event.as_raw_fd() && event.read().is_ok();
            }
            // After an error in the same batch of events the rest of the batch is void.
            Self::Device { error: Some(_), .. } => {}
            Self::Device { serve, error } => *error = serve.serve(events, ops).err(),
        }
    }
}

/// The body of a worker thread: serves one value after another until the [`Worker`] is dropped.
fn run<S: Serve>(
    mut manager: EventManager<Subscriber<S>>,
    stop: SubscriberId,
    starts: &Receiver<S>,
    stops: &Sender<S>,
) {
    while let Ok(serve) = starts.recv() {
        let device = manager.add_subscriber(Subscriber::Device { serve, error: None });
        let outcome = dispatch(&mut manager, device, stop);
        let Ok(Subscriber::Device { mut serve, error }) = manager.remove_subscriber(device) else {
            unreachable!("the device was added above");
        };
        serve.end();
        let alive = outcome.is_ok();
        if let Some(error) = outcome.err().or(error) {
            serve.failed(error);
        }
        // With the device removed only the stop event can end this loop.
        while alive && !take_stop(&mut manager, stop) && manager.run().is_ok() {}
        if stops.send(serve).is_err() || !alive {
            return;
        }
    }
}

/// Dispatches events until the device has failed or the stop event has been seen. An error says
/// that waiting for events is impossible.
fn dispatch<S: Serve>(
    manager: &mut EventManager<Subscriber<S>>,
    device: SubscriberId,
    stop: SubscriberId,
) -> io::Result<()> {
    loop {
        let stopped =
            matches!(manager.subscriber_mut(stop), Ok(Subscriber::Stop { seen: true, .. }));
        let failed =
            matches!(manager.subscriber_mut(device), Ok(Subscriber::Device { error: Some(_), .. }));
        if stopped || failed {
            return Ok(());
        }
        manager.run().map_err(event_error)?;
    }
}

/// Takes the sight of the stop event, for the next start.
fn take_stop<S: Serve>(manager: &mut EventManager<Subscriber<S>>, stop: SubscriberId) -> bool {
    match manager.subscriber_mut(stop) {
        Ok(Subscriber::Stop { seen, .. }) => std::mem::take(seen),
        _ => false,
    }
}

/// The `io::Error` behind an error of the event manager.
fn event_error(error: event_manager::Error) -> io::Error {
    match error {
        event_manager::Error::Epoll(errno) => errno.into(),
        other => io::Error::other(other),
    }
}
