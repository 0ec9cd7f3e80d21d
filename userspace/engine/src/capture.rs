//! From a frozen job to a snapshot.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::os::fd::AsFd;

use images::proto::process::State as ProcessState;
use images::proto::{Descriptor, Snapshot, Thread};

use crate::ahead::Ahead;
use crate::files::{Table, inet::filter::Filter, outer::Outer, pty, reach};
use crate::freeze::{self, Frozen, failed};
use crate::namespaces::Visit;
use crate::pages::Source;
use crate::procfs::Status;
use crate::track::SpaceNumbers;
use crate::{CheckpointError, CheckpointOptions, Scope, host, ipc, namespaces, plan};

mod answers;
mod gather;
mod lending;
mod process;
mod questions;
mod relations;

pub(crate) use gather::namespaces_of;
use gather::{Gathered, gather};
pub(crate) use lending::{borrow, lend};
pub(crate) use process::place;
use process::{name, one};
pub(crate) use relations::check;
use relations::{ids, relations};

/// The state of a frozen job, and where its pages are.
pub(crate) struct Captured {
    pub(crate) snapshot: Snapshot,
    pub(crate) sources: Vec<Source>,
    pub(crate) numbers: SpaceNumbers,
    /// The packets of connections to the outside are held off for as long as this is there.
    pub(crate) held_off: Option<Filter>,
}

/// Reads the state of a frozen job; `numbers` are those of page spaces known before, `ahead` is what was found out before.
///
/// # Errors
/// [`CheckpointError::Refused`] lists everything that could not be restored.
pub(crate) fn capture(
    frozen: &mut Frozen,
    options: &CheckpointOptions<'_>,
    numbers: SpaceNumbers,
    ahead: Ahead,
) -> Result<Captured, CheckpointError> {
    let (Scope::Tree { root } | Scope::Supervised { root, .. }) = options.scope;
    let mut refusals = Vec::new();
    let known = |pid: &u32| frozen.processes.contains_key(pid);
    let order: Vec<u32> = frozen.order.iter().copied().filter(known).collect();
    // Of a process whose leader has ended its other threads tell.
    let speaker = |frozen: &Frozen, pid: u32| {
        let process = frozen.processes.get(&pid);
        process.map_or(pid, freeze::Process::speaker)
    };
    let seen: Vec<(u32, u32)> = (order.iter())
        .map(|&pid| (pid, speaker(frozen, pid)))
        .collect();
    let mut gathered = gather(&seen, options.tracker, &ahead)?;
    let of_root = speaker(frozen, root);
    let statuses: HashMap<u32, Status> = gathered
        .iter_mut()
        .map(|(&pid, gathered)| (pid, std::mem::take(&mut gathered.status)))
        .collect();
    let namespaces_of = |pid: u32| {
        gathered
            .get(&pid)
            .map(|gathered| gathered.namespaces.clone())
    };
    check(&order, &statuses, root, &namespaces_of, &mut refusals);
    if !refusals.is_empty() {
        return Err(CheckpointError::Refused(refusals));
    }
    let visit =
        Visit::to(of_root).map_err(failed(format!("entering the namespaces of process {root}")))?;
    refusals.extend(visit.check(root));
    let ids = ids(&statuses, root);
    let outer = Outer::of(options.stdio_of, order.contains(&options.stdio_of));
    let mut table = Table::new(outer, numbers);
    table.tcp = (options.tcp, options.kill);
    table.save_files = options.save_files;
    table.ahead = ahead;
    table.members.clone_from(&ids.inner);
    let (mut processes, mut sources) = (Vec::new(), Vec::new());
    for pid in &order {
        let Some(process) = frozen.processes.get_mut(pid) else {
            continue;
        };
        let Some(status) = statuses.get(pid) else {
            continue;
        };
        let Some(Gathered {
            stat,
            speaker,
            living,
            ..
        }) = gathered.remove(pid)
        else {
            continue;
        };
        let mut record = relations(status, &stat, &ids, &statuses);
        // A signal that was on its way ends one that was stopped. Children, if it had some, may have been read as they were before.
        let is_parent = || statuses.values().any(|other| other.number("PPid") == *pid);
        if process.threads.is_empty() || (living.is_none() && !is_parent()) {
            // Orphaned zombies are their adopter's to wait for.
            if record.ppid != 0 {
                record.set_state(ProcessState::Zombie);
                record.wait_status = stat.field(52) as i32;
                record.threads = vec![Thread {
                    tid: record.pid,
                    name: name(*pid, *pid),
                    ..Default::default()
                }];
                processes.push(record);
            }
            continue;
        }
        if let Some(signal) = process.stopped_by {
            record.set_state(ProcessState::Stopped);
            record.wait_status = signal;
        }
        let (status, stat) = match &speaker {
            Some((status, stat)) => (status, stat),
            None => (status, &stat),
        };
        one(
            process,
            options.tracker,
            status,
            stat,
            options.stdio_of,
            living.ok_or(CheckpointError::Gone { pid: *pid })?,
            &mut record,
            &mut table,
            &mut refusals,
            &mut sources,
        )?;
        processes.push(record);
    }
    let tables: Vec<(u32, Vec<Descriptor>)> = {
        let outer = |inner: u32| {
            ids.inner
                .iter()
                .find(|(_, id)| **id == inner)
                .map_or(inner, |(outer, _)| *outer)
        };
        processes
            .iter()
            .map(|p| (speaker(frozen, outer(p.pid)), p.descriptors.clone()))
            .collect()
    };
    let borrowed: Vec<(u32, &[Descriptor])> =
        tables.iter().map(|(pid, d)| (*pid, d.as_slice())).collect();
    table.finish(
        &borrowed,
        &mut |pid, program| {
            let pid = frozen.spoken_for(pid);
            borrow(frozen, pid)?;
            frozen.run(pid, program)
        },
        &mut refusals,
    )?;
    refusals.extend(namespaces::translate(
        &mut processes,
        visit.found().as_ref(),
    ));
    if visit.found().is_none() {
        refusals.extend(reach::check(&processes, &table.files));
    }
    let outer: Vec<u32> = tables.iter().map(|(pid, _)| *pid).collect();
    pty::controlling(&mut processes, &outer, &table.files, &mut refusals);
    let job = ipc::Job {
        root,
        members: &ids.inner,
        processes: &processes,
        began: OnceCell::new(),
    };
    ipc::segments::capture(&mut table, &job, &mut refusals);
    let semaphores = ipc::semaphores::capture(&job, options.tracker, &mut refusals);
    let queues = ipc::messages::capture(&job, &mut refusals);
    for (space, file, size) in std::mem::take(&mut table.objects) {
        let areas = memory::Object::new(file.as_fd()).data(size)?;
        sources.push(Source::Object {
            space,
            file: file.into(),
            areas,
        });
    }
    let command = remote::sys::read_file(format!("/proc/{of_root}/cmdline")).unwrap_or_default();
    let snapshot = Snapshot {
        host: Some(host::of_job(of_root, &processes)),
        processes,
        files: table.files,
        shared: table.shared,
        semaphores,
        queues,
        namespaces: visit.found(),
        filters: table.filters,
        root: ids.inner.get(&root).copied().unwrap_or(root),
        command: String::from_utf8_lossy(&command)
            .split_terminator('\0')
            .map(str::to_owned)
            .collect(),
    };
    for missing in host::missing_rights(&snapshot) {
        tracing::warn!(
            "process {}, {}: {}; it could not be restored so",
            missing.pid,
            missing.what,
            missing.why
        );
    }
    // Whatever a plan would stumble over is known now, while the job can still be told.
    refusals.extend(plan::impossible(&snapshot));
    if refusals.is_empty() {
        Ok(Captured {
            snapshot,
            sources,
            numbers: table.spaces,
            held_off: table.held_off,
        })
    } else {
        Err(CheckpointError::Refused(refusals))
    }
}
