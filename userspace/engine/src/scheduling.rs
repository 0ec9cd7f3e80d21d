//! How a thread is scheduled: policy, nice, CPUs, I/O priority.

use std::io;

use images::proto::Scheduling;
use remote::{Program, sys};

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
