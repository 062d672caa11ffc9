//! Containers under runc or crun and under bulkhead: whatever a program inside can see must agree,
//! and so must what the runtimes say.

mod areas;
mod case;
mod choice;
mod compare;
mod difference;
mod errors;
mod explained;
mod side;
mod watch;
mod whole;
