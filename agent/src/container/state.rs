//! The states of a container and the one function that changes them.

use std::fmt;

/// Where a container is in its life (OCI runtime-spec, runtime.md, "State").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Being made.
    Creating,
    /// Waits to be started.
    Created,
    /// Its program runs.
    Running,
    /// All its processes are frozen.
    Paused,
    /// Waits to be started, frozen.
    CreatedPaused,
    /// Its init has ended.
    Stopped,
}

/// What may happen to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// libcontainer has made it.
    Made,
    /// `start` was called.
    Start,
    /// Its cgroup was frozen.
    Pause,
    /// Its cgroup was thawed.
    Resume,
    /// Its init has ended.
    Exit,
}

/// The next state, or `None` where the event is not allowed.
pub fn next(state: State, event: Event) -> Option<State> {
    match (state, event) {
        (State::Creating, Event::Made) => Some(State::Created),
        (State::Created, Event::Start) => Some(State::Running),
        (State::Running, Event::Pause) => Some(State::Paused),
        (State::Created, Event::Pause) => Some(State::CreatedPaused),
        (State::Paused, Event::Resume) => Some(State::Running),
        (State::CreatedPaused, Event::Resume) => Some(State::Created),
        (_, Event::Exit) => Some(State::Stopped),
        _ => None,
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused | Self::CreatedPaused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Event::*, State::*, *};

    #[test]
    fn states_follow_the_life_of_a_container() {
        let life = [
            (Made, Created),
            (Pause, CreatedPaused),
            (Resume, Created),
            (Start, Running),
            (Pause, Paused),
            (Resume, Running),
            (Exit, Stopped),
        ];
        let mut state = Creating;
        for (event, expected) in life {
            state = next(state, event).unwrap();
            assert_eq!(state, expected);
        }
    }

    #[test]
    fn state_that_is_stopped_allows_nothing_else() {
        for event in [Made, Start, Pause, Resume] {
            assert_eq!(next(Stopped, event), None);
        }
    }

    #[test]
    fn state_refuses_events_out_of_order() {
        for (state, event) in [
            (Creating, Start),
            (Created, Resume),
            (CreatedPaused, Start),
            (Created, Made),
            (Running, Start),
            (Running, Resume),
            (Paused, Pause),
            (Paused, Start),
        ] {
            assert_eq!(next(state, event), None, "{state} {event:?}");
        }
    }
}
