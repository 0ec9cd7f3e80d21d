//! What the benchmarks share: `cargo bench -p benches` for the parts, `cargo xtask bench` for the whole.
#![forbid(unsafe_code)]

use images::proto;

/// A job of so many processes with so many mappings each, of which none is like another.
#[must_use]
pub fn snapshot(processes: u32, mappings: u64) -> proto::Snapshot {
    const FIRST: u32 = 100;
    let mapping = |i: u64| proto::Mapping {
        start: i << 20,
        end: (i << 20) + (512 << 10),
        prot: 3,
        vm_flags: "rd wr mr mw me ac sd".into(),
        ..Default::default()
    };
    let process = |pid: u32| proto::Process {
        pid,
        ppid: if pid == FIRST { 0 } else { FIRST },
        pgid: FIRST,
        sid: FIRST,
        threads: vec![proto::Thread {
            tid: pid,
            registers: vec![0x5a; 216],
            xstate: vec![0xa5; 2696],
            ..Default::default()
        }],
        memory: Some(proto::AddressSpace {
            space: u64::from(pid),
            mappings: (1..=mappings).map(mapping).collect(),
            layout: Some(proto::MmLayout::default()),
        }),
        ..Default::default()
    };
    proto::Snapshot {
        host: Some(proto::Host {
            arch: std::env::consts::ARCH.into(),
            ..Default::default()
        }),
        processes: (FIRST..FIRST + processes).map(process).collect(),
        root: FIRST,
        ..Default::default()
    }
}
