//! How the kernel shares out processors and disks to a thread.

use std::io;
use std::mem::size_of;

use super::check;

/// The kernel's `struct sched_attr`, first version (sched_getattr(2)).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Bytes of this structure: 48.
    pub size: u32,
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// SCHED_DEADLINE: ns.
    pub runtime: u64,
    /// SCHED_DEADLINE: ns.
    pub deadline: u64,
    /// SCHED_DEADLINE: ns.
    pub period: u64,
}

impl SchedAttr {
    /// As sched_setattr(2) takes it.
    pub fn to_bytes(self) -> Vec<u8> {
        // SAFETY: the structure is 48 bytes of integers without padding.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const self).cast::<u8>(), size_of::<Self>())
        };
        bytes.to_vec()
    }
}

/// Scheduling policy and parameters of a thread.
pub fn scheduling(tid: i32) -> io::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    // SAFETY: `attr` is a live structure of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            tid,
            &raw mut attr,
            size_of::<SchedAttr>(),
            0,
        )
    })?;
    Ok(attr)
}

/// CPUs a thread may run on.
pub fn affinity(tid: i32) -> io::Result<Vec<u32>> {
    let mut mask = [0u64; 128];
    // SAFETY: `mask` is live and as large as given.
    let n = check(unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            tid,
            size_of_val(&mask),
            mask.as_mut_ptr(),
        )
    })?;
    let cpus = n as u32 * 8;
    Ok((0..cpus)
        .filter(|cpu| mask[(cpu / 64) as usize] >> (cpu % 64) & 1 == 1)
        .collect())
}

/// I/O priority of a thread (ioprio_get(2)).
pub fn io_priority(tid: i32) -> io::Result<u32> {
    // SAFETY: no pointers are passed. 1 is IOPRIO_WHO_PROCESS.
    Ok(check(unsafe { libc::syscall(libc::SYS_ioprio_get, 1, tid) })? as u32)
}

/// Gives the calling thread the idle class of I/O priority (ioprio_set(2)): it is served when nobody else wants the disk.
pub fn idle_io() -> io::Result<()> {
    const IDLE: i32 = 3 << 13;
    // SAFETY: no pointers are passed. 1 is IOPRIO_WHO_PROCESS, 0 the calling thread.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, IDLE) })?;
    Ok(())
}
