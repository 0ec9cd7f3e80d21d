//! Breakpoints that somebody outside has put into a job's code: uprobes of perf(1) and tracing. They are the host's, not the job's, and never
//! come into an image: left in it, they would kill the restored process.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use images::PAGE_SIZE;
use images::proto::Mapping;
use images::proto::mapping::Kind;
use remote::sys;

use crate::CheckpointError;
use crate::areas::{Area, has};
use crate::freeze::failed;
use crate::procfs::Status;

/// int3
const BREAKPOINT: u8 = 0xcc;
/// What an optimized probe takes the place of, with a call (Linux 6.18, arch/x86/kernel/uprobes.c).
const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
const CALL: u8 = 0xe8;
/// With more changed pages than this, it is not probes that have changed them.
const MOST: u64 = 4096;

/// Where the kernel runs what breakpoints have taken the place of.
const OUT_OF_LINE: &str = "[uprobes]";

/// Whether a mapping is there for probes only.
pub(crate) fn is_area(area: &Area) -> bool {
    area.path == OUT_OF_LINE || area.path == "[uprobes-trampoline]"
}

/// A mapping of a stopped process without the pages of code that are as in the file but for breakpoints of somebody else's. `pagemap` is opened
/// for the first such mapping.
pub(crate) fn without(
    pid: u32,
    area: &Area,
    mapping: &Mapping,
    pagemap: &mut Option<memory::Pagemap>,
) -> Result<Vec<Range<u64>>, CheckpointError> {
    let whole = area.start..area.end;
    let has = |flag| has(&mapping.vm_flags, flag);
    let code = mapping.kind() == Kind::FilePrivate && has("ex") && !has("wr");
    if !code {
        return Ok(vec![whole]);
    }
    let mut changed = Vec::new();
    if pagemap.is_none() {
        *pagemap = Some(memory::Pagemap::open(pid)?);
    }
    if let Some(pagemap) = pagemap {
        pagemap.content(whole.clone(), memory::Kind::PrivateFile, &mut changed)?;
    }
    let page = PAGE_SIZE as u64;
    let count: u64 = changed.iter().map(|run| (run.end - run.start) / page).sum();
    // Whoever handles SIGTRAP may have put them there itself.
    if count == 0 || count > MOST || handles_breakpoints(pid) {
        return Ok(vec![whole]);
    }
    let path = format!("/proc/{pid}/map_files/{:x}-{:x}", area.start, area.end);
    let file = File::open(&path).map_err(failed(format!("opening {path}")))?;
    let (mut parts, mut at) = (Vec::new(), whole.start);
    let pages = changed.into_iter().flat_map(|run| run.step_by(PAGE_SIZE));
    for address in pages {
        let (mut now, mut original) = (vec![0; PAGE_SIZE], vec![0; PAGE_SIZE]);
        sys::read_memory(pid as i32, address, &mut now)
            .map_err(failed(format!("reading the code of process {pid}")))?;
        let offset = area.offset + (address - area.start);
        let read = file.read_exact_at(&mut original, offset);
        if read.is_ok() && only_probed(&now, &original) {
            parts.push(at..address);
            at = address + page;
        }
    }
    parts.push(at..whole.end);
    parts.retain(|part| !part.is_empty());
    Ok(parts)
}

fn handles_breakpoints(pid: u32) -> bool {
    let caught = Status::read(pid).map_or(0, |status| status.hex("SigCgt"));
    caught >> (libc::SIGTRAP - 1) & 1 == 1
}

/// Whether a page of code is as it was but for probes.
fn only_probed(now: &[u8], original: &[u8]) -> bool {
    let mut at = 0;
    while at < now.len() {
        if now[at] == original[at] || now[at] == BREAKPOINT {
            at += 1;
        } else if now[at] == CALL && original[at..].starts_with(&NOP5) {
            at += NOP5.len();
        } else {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_probes_do_to_code() {
        let original = [0x55, 0x48, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0xc3];
        assert!(only_probed(&original, &original));
        let mut now = original;
        now[0] = BREAKPOINT;
        assert!(only_probed(&now, &original));
        now[2..7].copy_from_slice(&[CALL, 1, 2, 3, 4]);
        assert!(only_probed(&now, &original));
        now[7] = 0x90;
        assert!(!only_probed(&now, &original));
    }
}
