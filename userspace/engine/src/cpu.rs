//! Registers, the xsave area and restartable sequences, and what of the CPU a job depends on.

use images::proto::{Host, Rseq, Thread};
use remote::{Program, Stopped, live::State, sys};

use crate::waits;

/// CPU flags that user programs see through cpuid and choose code by; the kernel's own are of no interest.
pub(crate) fn features() -> Vec<String> {
    let text = sys::read_text("/proc/cpuinfo").unwrap_or_default();
    let flags = text
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .unwrap_or_default();
    flags
        .trim_start_matches(['\t', ' ', ':'])
        .split_whitespace()
        .filter(|flag| matters(flag))
        .map(str::to_owned)
        .collect()
}

/// Instruction set extensions that user code can execute.
fn matters(flag: &str) -> bool {
    const PREFIXES: [&str; 9] = [
        "sse", "ssse", "avx", "aes", "bmi", "amx", "sha", "vaes", "movdir",
    ];
    const NAMES: [&str; 31] = [
        "fma",
        "fma4",
        "xop",
        "tbm",
        "f16c",
        "popcnt",
        "lzcnt",
        "abm",
        "movbe",
        "pclmulqdq",
        "vpclmulqdq",
        "gfni",
        "adx",
        "rdrand",
        "rdseed",
        "fsgsbase",
        "erms",
        "fsrm",
        "cx16",
        "cmov",
        "mmx",
        "fxsr",
        "xsave",
        "xsavec",
        "xgetbv1",
        "clwb",
        "clflushopt",
        "rdpid",
        "ospke",
        "pni",
        "sm4",
    ];
    PREFIXES.iter().any(|prefix| flag.starts_with(prefix)) || NAMES.contains(&flag)
}

/// What the job was built on and this host does not have; empty when it can run here.
pub(crate) fn missing(job: &Host, host: &Host) -> Vec<String> {
    let mut missing: Vec<String> = job
        .cpu_features
        .iter()
        .filter(|feature| !host.cpu_features.contains(feature))
        .cloned()
        .collect();
    let state = job.xcr0 & !host.xcr0;
    if state != 0 {
        missing.push(format!("xsave state components {state:#x}"));
    }
    missing
}

/// Protection keys: their component of the xsave area, and what is in it unless a program has asked for one (arch/x86/mm/pkeys.c,
/// init_pkru_value).
const PKRU: u32 = 9;
const PKRU_UNUSED: u32 = 0x5555_5554;

/// Whether a thread has protection keys (pkeys(7)).
pub(crate) fn has_protection_keys(xstate: &[u8]) -> bool {
    sys::xcr0() >> PKRU & 1 == 1 && pkru_is_used(xstate, sys::xsave_offset(PKRU))
}

fn pkru_is_used(xstate: &[u8], offset: usize) -> bool {
    let bytes = xstate.get(offset..).and_then(<[u8]>::first_chunk);
    bytes.is_some_and(|bytes| u32::from_ne_bytes(*bytes) != PKRU_UNUSED)
}

/// Reads a stopped thread's registers. Inside a restartable sequence the thread goes on at its abort handler, also in the running job: the
/// system calls we are about to make in it end the sequence as a preemption would (kernel/rseq.c, rseq_ip_fixup).
pub(crate) fn state(task: &Stopped) -> std::io::Result<(State, Option<Rseq>)> {
    let registers = waits::as_interrupted(task.tid(), task.registers()?);
    let mut state = State {
        call: waits::call(task.tid(), &registers),
        registers,
        mask: task.signal_mask()?,
        xstate: task.xstate()?,
    };
    // EIO where the kernel has no rseq.
    let rseq = match task.rseq() {
        Ok((address, size, signature, flags)) if address != 0 => Some(Rseq {
            address,
            size,
            signature,
            flags,
        }),
        _ => None,
    };
    if let Some(rseq) = &rseq
        && let Some(abort) = abort_address(task, rseq.address, state.registers.rip)
    {
        state.registers.rip = abort;
        // From now on it must not go on inside, wherever we are interrupted.
        task.set_registers(&state.registers)?;
    }
    Ok((state, rseq))
}

/// Where the sequence that contains `ip` aborts to. struct rseq has the address of its struct rseq_cs at offset 8; that has
/// version and flags, start, length and abort address (include/uapi/linux/rseq.h).
fn abort_address(task: &Stopped, rseq: u64, ip: u64) -> Option<u64> {
    let mut pointer = [0u8; 8];
    sys::read_memory(task.tid(), rseq + 8, &mut pointer).ok()?;
    let descriptor = u64::from_ne_bytes(pointer);
    if descriptor == 0 {
        return None;
    }
    let mut words = [0u8; 32];
    sys::read_memory(task.tid(), descriptor, &mut words).ok()?;
    let word =
        |i: usize| u64::from_ne_bytes(words[8 * i..8 * i + 8].try_into().unwrap_or_default());
    (ip.wrapping_sub(word(1)) < word(2)).then(|| word(3))
}

/// Registers the thread's restartable-sequence area; the thread itself has to.
pub(crate) fn set_rseq(program: &mut Program, thread: &Thread) {
    if let Some(rseq) = &thread.rseq {
        let args = [
            rseq.address.into(),
            rseq.size.into(),
            rseq.flags.into(),
            rseq.signature.into(),
        ];
        program.must(
            libc::SYS_rseq,
            &args,
            "register the restartable-sequence area",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lacking_features_are_listed() {
        let host = |features: &[&str], xcr0| Host {
            cpu_features: features.iter().map(|f| (*f).to_owned()).collect(),
            xcr0,
            ..Default::default()
        };
        let job = host(&["avx2", "avx512f"], 0xe7);
        assert_eq!(
            missing(&job, &host(&["avx2"], 0x7)),
            ["avx512f", "xsave state components 0xe0"]
        );
        assert!(missing(&job, &job).is_empty());
    }

    #[test]
    fn protection_keys() {
        let mut xstate = vec![0; 2700];
        xstate[2688..2692].copy_from_slice(&PKRU_UNUSED.to_ne_bytes());
        assert!(!pkru_is_used(&xstate, 2688));
        xstate[2688] |= 0x20;
        assert!(pkru_is_used(&xstate, 2688) && !pkru_is_used(&xstate, 4096));
    }
}
