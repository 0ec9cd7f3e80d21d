//! Acting on another task: stopping it, reading and setting its state, and running system calls inside it.
//!
//! * [`task`] - ptrace, with running and stopped tasks as different types;
//! * [`program`] - a vector of system calls as plain data;
//! * [`stub`] - the few instructions that run such a vector inside a stopped task;
//! * [`live`] - the stub lent to a task of a running job, which survives our death;
//! * [`seed`] - a new, almost empty process that becomes a task of a restored job;
//! * [`sockets`] - the same for sockets;
//! * [`ipc`] - System V objects, looked at;
//! * [`sys`] - system calls that neither `libc` nor `nix` wraps safely.
//!
//! Addresses here belong to the other task's address space: they are plain `u64` and never dereferenced.

pub mod confinement;
pub mod ipc;
pub mod live;
pub mod program;
pub mod seed;
pub mod sockets;
pub mod stub;
pub mod sys;
pub mod task;

pub use program::{Arg, Blob, Call, Expect, Program};
pub use stub::{Outcome, RunError};
pub use task::{Running, Stop, Stopped, Waited};
