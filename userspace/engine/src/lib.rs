//! A process tree to plain data, and plain data to a process tree.
//!
//! [`checkpoint`] freezes a job, captures its state and memory and commits them to an [`images::Job`].
//! [`plan`] turns a checkpoint into an ordered list of steps without touching anything, and [`rebuild`]
//! carries the steps out.
//!
//! Each kernel resource is a module that holds its capture and its rebuild side by side; its record is a message of
//! `images/proto`.
#![forbid(unsafe_code)]

mod ahead;
mod api;
mod areas;
mod attributes;
mod capture;
mod cgroup;
mod checkpoint;
mod clock;
mod cow;
mod cpu;
mod dispatch;
mod fault;
mod files;
mod freeze;
mod host;
mod identity;
mod ipc;
mod keys;
mod lazy;
mod limits;
mod lookout;
mod maps;
mod members;
mod namespaces;
mod pages;
mod plan;
mod probes;
mod procfs;
mod rebuild;
mod scheduling;
mod seccomp;
mod signals;
mod timers;
mod told;
mod track;
mod tree;
mod vdso;
mod waits;
mod weigh;

pub use api::*;
pub use checkpoint::checkpoint;
pub use lazy::{Image, LazyJob, Serve, can_be_lazy, close_vault, collapse, find_vault, huge_pages};
pub use lookout::Lookout;
pub use members::start_apart;
pub use plan::{Plan, plan};
pub use rebuild::rebuild;
pub use remote::sys::{idle_io, sigpipe_was_ignored};
pub use track::{Incoming, Incomplete, Missing, Tracking, by_userfaultfd as tracks_by_userfaultfd};
pub use weigh::needs_bpf;
