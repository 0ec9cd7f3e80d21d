//! Character devices without state.

use std::os::unix::fs::MetadataExt;

use images::proto::open_file::Kind;
use images::proto::{Device, OpenFile};

use super::regular::reopening;
use super::{Held, Shell, Why};

/// Major 1: memory devices (Documentation/admin-guide/devices.txt).
const STATELESS: [(u32, u32); 6] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0)];

pub(crate) fn capture(held: &Held) -> Result<Kind, Why> {
    let device = held.meta.rdev();
    let numbers = (
        nix::sys::stat::major(device) as u32,
        nix::sys::stat::minor(device) as u32,
    );
    if !STATELESS.contains(&numbers) {
        let why = format!(
            "character device {}:{} may have state that cannot be read",
            numbers.0, numbers.1
        );
        return Err((why, "checkpoint when the program has closed it".to_owned()));
    }
    Ok(Kind::Device(Device {
        path: held.link.clone(),
        major: numbers.0,
        minor: numbers.1,
    }))
}

/// /dev/tty, the controlling terminal of whoever opens it.
pub(crate) fn is_own_terminal(file: &OpenFile) -> bool {
    matches!(&file.kind, Some(Kind::Device(device)) if (device.major, device.minor) == (5, 0))
}

pub(crate) fn open(shell: &mut Shell, device: &Device, flags: u32) -> u32 {
    shell.open_path(&device.path, reopening(flags))
}
