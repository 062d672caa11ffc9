//! Keeps the supervisor alive when the kernel ends processes for want of memory: it is the one
//! to tell why, it is small, and its end would not give back what the guest takes.

use std::fs;

/// No process with this score is chosen (proc_pid_oom_score_adj(5)).
const NEVER: &str = "-1000";
const FILE: &str = "/proc/self/oom_score_adj";

/// This process is not chosen, until this is dropped.
#[derive(Debug)]
pub(super) struct OomShield {
    before: Option<String>,
}

impl OomShield {
    /// Without the right to lower the score, which root has, the process stays as it is.
    pub fn up() -> Self {
        let before = fs::read_to_string(FILE).ok();
        let raised = fs::write(FILE, NEVER).is_ok();
        Self { before: before.filter(|_| raised) }
    }
}

impl Drop for OomShield {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Raising the score again needs no right.
            let _ = fs::write(FILE, before.trim());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn score_is_lowered_only_while_the_shield_is_up() {
        let now = || fs::read_to_string(FILE).unwrap();
        let before = now();
        let shield = OomShield::up();
        if shield.before.is_none() {
            println!("skipped: the score cannot be lowered here");
            return;
        }
        assert_eq!(now().trim(), NEVER);
        drop(shield);
        assert_eq!(now(), before);
    }
}
