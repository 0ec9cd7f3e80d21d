//! How a thread is scheduled: policy, nice, CPUs, I/O priority.

use std::io;

use images::proto::{Process, Scheduling};
use remote::{Program, sys};

use crate::files::Shell;

pub(crate) fn capture(tid: u32) -> io::Result<Scheduling> {
    let attr = sys::scheduling(tid as i32)?;
    Ok(Scheduling {
        policy: attr.policy,
        flags: attr.flags,
        nice: attr.nice,
        priority: attr.priority,
        runtime: attr.runtime,
        deadline: attr.deadline,
        period: attr.period,
        cpus: sys::affinity(tid as i32)?,
        io_priority: sys::io_priority(tid as i32).unwrap_or(0),
    })
}

/// The CPUs to allow on a host that has `host`, where `recorded` were allowed among `online` ones: all of them if all were, else
/// the same numbers as far as they are there, else as many others.
pub(crate) fn map_cpus(recorded: &[u32], online: u32, host: &[u32]) -> Vec<u32> {
    if recorded.len() >= online as usize || host.is_empty() {
        return host.to_vec();
    }
    let there: Vec<u32> = recorded
        .iter()
        .copied()
        .filter(|cpu| host.contains(cpu))
        .collect();
    if !there.is_empty() {
        return there;
    }
    let mut others: Vec<u32> = recorded
        .iter()
        .map(|cpu| host[*cpu as usize % host.len()])
        .collect();
    others.sort_unstable();
    others.dedup();
    others
}

/// Sets what differs from `ours`, the state a new task starts with.
pub(crate) fn set(program: &mut Program, wanted: &Scheduling, ours: &Scheduling, online: u32) {
    let attr = |s: &Scheduling| sys::SchedAttr {
        size: 48,
        policy: s.policy,
        flags: s.flags,
        nice: s.nice,
        priority: s.priority,
        runtime: s.runtime,
        deadline: s.deadline,
        period: s.period,
    };
    // Before the affinity: SCHED_DEADLINE threads may not be bound to CPUs. EEVDF's slice in `runtime` is taken as it is.
    if attr(wanted) != attr(ours) {
        let new = program.bytes(attr(wanted).to_bytes());
        program.must(
            libc::SYS_sched_setattr,
            &[0.into(), new.into(), 0.into()],
            "set the scheduling policy",
        );
    }
    let cpus = map_cpus(&wanted.cpus, online, &ours.cpus);
    if cpus != ours.cpus && !cpus.is_empty() {
        let mut mask = [0u64; 128];
        for &cpu in cpus.iter().filter(|&&cpu| cpu < 8192) {
            mask[(cpu / 64) as usize] |= 1 << (cpu % 64);
        }
        let blob = program.words(&mask);
        program.must(
            libc::SYS_sched_setaffinity,
            &[0.into(), 1024.into(), blob.into()],
            "set the allowed CPUs",
        );
    }
    if wanted.io_priority != ours.io_priority {
        let args = [1.into(), 0.into(), wanted.io_priority.into()];
        program.must(libc::SYS_ioprio_set, &args, "set the I/O priority");
    }
}

/// The nice value of the scheduling group that the session of a process is, if it has one (sched(7)).
pub(crate) fn autogroup(pid: u32) -> i32 {
    // "/autogroup-12 nice 5" (kernel/sched/autogroup.c)
    let text = sys::read_text(format!("/proc/{pid}/autogroup")).unwrap_or_default();
    let nice = text.trim().rsplit_once("nice ").map(|(_, nice)| nice);
    nice.and_then(|nice| nice.parse().ok()).unwrap_or(0)
}

/// Gives the session of `process` its nice value, where it is the first of `processes` that can.
pub(crate) fn set_autogroup(shell: &mut Shell, process: &Process, processes: &[Process]) {
    let same = |other: &&Process| other.sid == process.sid && other.memory.is_some();
    let first = processes.iter().find(same);
    if process.autogroup == 0 || process.sid == 0 || first.is_none_or(|it| it.pid != process.pid) {
        return;
    }
    let fd = shell.open_path("/proc/self/autogroup", libc::O_WRONLY as u32);
    let text = process.autogroup.to_string();
    let blob = shell.program.bytes(text.as_bytes());
    let args = [fd.into(), blob.into(), text.len().into()];
    let label = format!("give its session the nice value {text}");
    shell.program.must(libc::SYS_write, &args, label);
    shell.close(fd);
}

#[cfg(test)]
mod tests {
    use super::map_cpus;

    #[test]
    fn cpus_on_another_host() {
        assert_eq!(map_cpus(&[0, 1, 2, 3], 4, &[0, 1]), [0, 1], "all stay all");
        assert_eq!(
            map_cpus(&[1, 3], 4, &[0, 1]),
            [1],
            "the same where they are"
        );
        assert_eq!(map_cpus(&[6, 7], 8, &[0, 1]), [0, 1], "as many others");
        assert_eq!(map_cpus(&[6], 8, &[0, 1]), [0]);
    }
}
