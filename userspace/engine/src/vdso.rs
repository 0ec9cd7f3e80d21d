//! The vdso: system calls without a system call. A job keeps the addresses it knows. On the same kernel the host's vdso is
//! moved there; on another one the job's old vdso comes back as plain memory whose functions jump to the host's. So nobody should be
//! in the middle of one when it is saved: what the old code works with would be missing.

use std::collections::HashMap;
use std::sync::OnceLock;

use images::proto::mapping::Kind;
use images::proto::{AddressSpace, Mapping};
use remote::{Expect, Program, Stopped};

use crate::areas;
use crate::host::Host;

/// Moves or stands in for the vdso of one process. `staging` is where the host's pieces lie, one behind the other; `room` is a
/// free place for them in this process's map. The process's code is at `staging` when this ends in neither case.
pub(crate) fn place(
    program: &mut Program,
    space: &AddressSpace,
    recorded: &[u8],
    host: &Host,
    staging: u64,
    room: u64,
) {
    let is = |m: &&Mapping| matches!(m.kind(), Kind::Vdso | Kind::Vvar);
    let wanted: Vec<&Mapping> = space.mappings.iter().filter(is).collect();
    let total: u64 = host.vdso_pieces.iter().map(|(length, _)| length).sum();
    let Some(first) = wanted.first() else {
        program.must(
            libc::SYS_munmap,
            &[staging.into(), total.into()],
            "remove the vdso",
        );
        return;
    };
    if recorded == host.record.vdso && same_layout(&wanted, &host.vdso_pieces) {
        move_pieces(program, &host.vdso_pieces, staging, first.start);
        return;
    }
    move_pieces(program, &host.vdso_pieces, staging, room);
    let Some(old) = wanted.iter().find(|m| m.kind() == Kind::Vdso) else {
        return;
    };
    let before: u64 = host
        .vdso_pieces
        .iter()
        .take_while(|(_, vdso)| !vdso)
        .map(|(length, _)| length)
        .sum();
    let code = stand_in(recorded, &host.record.vdso, room + before);
    let length = old.end - old.start;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let args = [
        old.start.into(),
        length.into(),
        prot.into(),
        flags.into(),
        u64::MAX.into(),
        0.into(),
    ];
    program.call(
        libc::SYS_mmap,
        &args,
        Expect::Exactly(old.start),
        "map the old vdso",
    );
    // Copied by the kernel, from the program's own data: a pipe of one's own is the shortest way without other code.
    for (nth, piece) in code.chunks(4096).enumerate() {
        let data = program.bytes(piece.to_vec());
        let local = program.words(&[0, piece.len() as u64]);
        program.point(local, 0, data);
        let remote = program.words(&[old.start + 4096 * nth as u64, piece.len() as u64]);
        let pid = program.try_call(libc::SYS_getpid, &[], "own pid");
        let args = [
            remote::Arg::Result(pid),
            local.into(),
            1.into(),
            remote.into(),
            1.into(),
            0.into(),
        ];
        let expect = Expect::Exactly(piece.len() as u64);
        program.call(
            libc::SYS_process_vm_writev,
            &args,
            expect,
            "write the old vdso",
        );
    }
    let prot = libc::PROT_READ | libc::PROT_EXEC;
    program.must(
        libc::SYS_mprotect,
        &[old.start.into(), length.into(), prot.into()],
        "protect the old vdso",
    );
}

/// Whether a stopped thread is inside of the vdso, other than in a system call.
pub(crate) fn is_inside(pid: u32, task: &Stopped) -> bool {
    /// What the auxiliary vector calls its address (`AT_SYSINFO_EHDR`).
    const VDSO: u64 = 33;
    static LENGTH: OnceLock<u64> = OnceLock::new();
    let Ok(registers) = task.registers() else {
        return false;
    };
    if registers.orig_rax != u64::MAX {
        return false;
    }
    let length = LENGTH.get_or_init(|| {
        let own = areas::own();
        let found = own.iter().find(|area| area.path == "[vdso]");
        found.map_or(0, |area| area.end - area.start)
    });
    let auxv = std::fs::read(format!("/proc/{pid}/auxv")).unwrap_or_default();
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    let mut entries = auxv.chunks_exact(16);
    let start = entries.find(|entry| word(&entry[..8]) == VDSO);
    start.is_some_and(|entry| {
        let start = word(&entry[8..]);
        (start..start.saturating_add(*length)).contains(&registers.rip)
    })
}

fn same_layout(wanted: &[&Mapping], pieces: &[(u64, bool)]) -> bool {
    let contiguous = wanted.windows(2).all(|pair| pair[0].end == pair[1].start);
    let shape = wanted
        .iter()
        .map(|m| (m.end - m.start, m.kind() == Kind::Vdso));
    contiguous && shape.eq(pieces.iter().copied())
}

/// Moves the pieces from one place to another; each is a mapping of its own.
pub(crate) fn move_pieces(program: &mut Program, pieces: &[(u64, bool)], from: u64, to: u64) {
    let mut offset = 0;
    for (length, _) in pieces {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let args = [
            (from + offset).into(),
            (*length).into(),
            (*length).into(),
            flags.into(),
            (to + offset).into(),
        ];
        program.call(
            libc::SYS_mremap,
            &args,
            Expect::Exactly(to + offset),
            "move the vdso",
        );
        offset += length;
    }
}

/// The old image with `mov rax, target; jmp rax` in place of each function that the new one, at `base`, has too.
fn stand_in(old: &[u8], new: &[u8], base: u64) -> Vec<u8> {
    let mut code = old.to_vec();
    let targets = symbols(new);
    for (name, offset) in symbols(old) {
        let Some(target) = targets.get(&name) else {
            continue;
        };
        let mut jump = vec![0x48, 0xb8];
        jump.extend((base + target).to_le_bytes());
        jump.extend([0xff, 0xe0]);
        if let Some(place) = code.get_mut(offset as usize..offset as usize + jump.len()) {
            place.copy_from_slice(&jump);
        }
    }
    code
}

/// Functions of a vdso image by name: their offsets, from its dynamic symbols (elf(5)).
fn symbols(image: &[u8]) -> HashMap<String, u64> {
    let word = |at: u64| -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        Some(u64::from_le_bytes(
            image.get(at..at.checked_add(8)?)?.try_into().ok()?,
        ))
    };
    let half = |at: u64| word(at).map(|w| w as u32);
    let mut found = HashMap::new();
    let mut dynamic = None;
    let headers = word(32).unwrap_or(0);
    for nth in 0..u64::from(word(56).unwrap_or(0) as u16) {
        let header = headers.saturating_add(nth * 56);
        if half(header) == Some(2) {
            dynamic = word(header + 8);
        }
    }
    let Some(mut entry) = dynamic else {
        return found;
    };
    let (mut strings, mut table, mut hash) = (0, 0, 0);
    while let (Some(tag), Some(value)) = (word(entry), word(entry + 8)) {
        match tag {
            0 => break,
            4 => hash = value,
            5 => strings = value,
            6 => table = value,
            _ => {}
        }
        entry += 16;
    }
    // The symbol table has no length of its own: DT_HASH has it, else it ends where the strings begin.
    let count = if hash != 0 {
        half(hash + 4).unwrap_or(0)
    } else {
        (strings.saturating_sub(table) / 24) as u32
    };
    for nth in 1..u64::from(count.min(256)) {
        let symbol = table + nth * 24;
        let (Some(name), Some(value)) = (half(symbol), word(symbol + 8)) else {
            break;
        };
        let kind = image.get(symbol as usize + 4).map_or(0, |info| info & 0xf);
        let start = (strings + u64::from(name)) as usize;
        let text = image
            .get(start..)
            .and_then(|rest| rest.split(|&b| b == 0).next())
            .unwrap_or_default();
        if kind == 2 && value != 0 {
            found.insert(String::from_utf8_lossy(text).into_owned(), value);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_this_kernels_vdso() {
        let vdso = crate::host::now().vdso;
        let found = symbols(&vdso);
        assert!(found.contains_key("__vdso_clock_gettime"), "{found:?}");
        let stand_in = stand_in(&vdso, &vdso, 0x1234_5000);
        let offset = found["__vdso_clock_gettime"] as usize;
        let target = 0x1234_5000 + offset as u64;
        assert_eq!(stand_in[offset..offset + 2], [0x48, 0xb8]);
        assert_eq!(stand_in[offset + 2..offset + 10], target.to_le_bytes());
    }
}
