//! What is done to jobs: one module a kind.

mod apps;
mod incremental;
mod launch;
mod lazy;
mod running;
mod whole;

pub(super) use apps::found as apps;
pub(super) use incremental::INCREMENTAL;
pub(super) use launch::LAUNCH;
pub(super) use lazy::LAZY;
pub(super) use running::RUNNING;
pub(super) use whole::WHOLE;
