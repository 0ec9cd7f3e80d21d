//! CLOCK_MONOTONIC and CLOCK_BOOTTIME go on where they were, on another boot too, in a time namespace (time_namespaces(7)).

use std::sync::OnceLock;

use images::proto;
use remote::sys;

use crate::Refusal;
use crate::procfs::Status;

const NS_PER_S: i64 = 1_000_000_000;
const CAP_SYS_TIME: u64 = 1 << 25;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Nanoseconds added to the two clocks in a namespace.
pub(crate) type Offsets = [i64; 2];

/// Those of a process, and those of the processes it will fork.
fn offsets(pid: u32) -> Offsets {
    let text = sys::read_text(format!("/proc/{pid}/timens_offsets")).unwrap_or_default();
    let of = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let mut words = line.unwrap_or_default().split_whitespace().skip(1);
        let mut number = || {
            words
                .next()
                .and_then(|word| word.parse::<i64>().ok())
                .unwrap_or(0)
        };
        number() * NS_PER_S + number()
    };
    [of("monotonic"), of("boottime")]
}

/// Our own, before anything was made for others.
fn own() -> Offsets {
    static OWN: OnceLock<Offsets> = OnceLock::new();
    *OWN.get_or_init(|| offsets(std::process::id()))
}

/// Whether a process runs by our own clocks.
fn is_ours(pid: u32) -> bool {
    let link = |pid: u32| crate::procfs::link(&format!("/proc/{pid}/ns/time")).ok();
    link(pid) == link(std::process::id())
}

/// Both clocks as a process sees them.
pub(crate) fn of(pid: u32) -> [u64; 2] {
    let now = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME].map(sys::clock);
    if is_ours(pid) {
        return now;
    }
    let (theirs, ours) = (offsets(pid), own());
    let shift = |nth: usize| now[nth].wrapping_add_signed(theirs[nth] - ours[nth]);
    [shift(0), shift(1)]
}

/// What has to be added to the clocks of this host for the job; none where they have gone on since the checkpoint.
pub(crate) fn shift(job: &proto::Host, here: &proto::Host) -> Option<Offsets> {
    let (then, now) = (
        [job.monotonic, job.boottime],
        [here.monotonic, here.boottime],
    );
    let same_boot = job.boot_id == here.boot_id && then[0] <= now[0] && then[1] <= now[1];
    // Checkpoints of before have one clock only.
    if same_boot || job.monotonic == 0 || job.boottime == 0 {
        return None;
    }
    let own = own();
    let of = |nth: usize| own[nth] + then[nth] as i64 - now[nth] as i64;
    Some([of(0), of(1)])
}

/// Why the job's clocks cannot go on here.
pub(crate) fn check(offsets: Option<Offsets>, root: u32) -> Option<Refusal> {
    offsets?;
    // Of ours, wherever the job has its own.
    let status = Status::read(std::process::id()).unwrap_or_default();
    let effective = status.hex("CapEff");
    let (needed, there) = (
        CAP_SYS_TIME | CAP_SYS_ADMIN,
        std::path::Path::new("/proc/self/timens_offsets").exists(),
    );
    if effective & needed == needed && there {
        return None;
    }
    let why = if there {
        "they are to go on from another boot, in a time namespace, which needs CAP_SYS_TIME and CAP_SYS_ADMIN"
    } else {
        "they are to go on from another boot, and this kernel has no time namespaces (Linux 5.6)"
    };
    Some(Refusal {
        pid: root,
        what: "CLOCK_MONOTONIC and CLOCK_BOOTTIME".to_owned(),
        why: why.to_owned(),
        advice: "restore as root, on such a kernel".to_owned(),
    })
}

/// Has everybody that we fork from here on run by these clocks.
pub(crate) fn enter(offsets: Offsets) -> std::io::Result<()> {
    own();
    sys::unshare(sys::CLONE_NEWTIME)?;
    let line = |name: &str, value: i64| {
        let (seconds, rest) = (value.div_euclid(NS_PER_S), value.rem_euclid(NS_PER_S));
        format!("{name} {seconds} {rest}\n")
    };
    let text = line("monotonic", offsets[0]) + &line("boottime", offsets[1]);
    std::fs::write("/proc/self/timens_offsets", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clocks_that_would_jump_are_shifted() {
        let host = |boot: &str, monotonic: u64, boottime: u64| proto::Host {
            boot_id: boot.to_owned(),
            monotonic,
            boottime,
            ..Default::default()
        };
        let own = own();
        assert_eq!(shift(&host("a", 5, 5), &host("a", 6, 7)), None);
        let other = shift(&host("a", 5, 6), &host("b", 9, 8)).unwrap();
        assert_eq!(other, [own[0] - 4, own[1] - 2]);
        assert!(shift(&host("a", 50, 60), &host("a", 9, 8)).is_some());
    }
}
