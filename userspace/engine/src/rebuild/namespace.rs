//! The init of a pid namespace of the job's own.

use std::io;

use remote::seed::Birth;
use remote::stub::{self};
use remote::{Program, Stop, Waited};

use super::{Builder, INIT, broke, failed, missing};
use crate::{RestoreError, RestoreOptions, namespaces};

impl Builder<'_> {
    /// The first process of a new pid namespace, with a /proc of its own.
    pub(super) fn make_init(&mut self) -> Result<(), RestoreError> {
        let own = &self.plan.host.own.clone().unwrap_or_default();
        self.init = Some(INIT);
        self.seed(
            INIT,
            &Birth {
                ids: Vec::new(),
                namespaces: libc::CLONE_NEWPID | libc::CLONE_NEWNS | namespaces::flags(own),
                maps: namespaces::maps(own),
                keep_stdio: true,
            },
            (1, 1),
        )?;
        let mut program = Program::new();
        let (none, slash, proc, target) = (
            program.string("none"),
            program.string("/"),
            program.string("proc"),
            program.string("/proc"),
        );
        let private = libc::MS_REC | libc::MS_PRIVATE;
        program.must(
            libc::SYS_mount,
            &[
                none.into(),
                slash.into(),
                0.into(),
                private.into(),
                0.into(),
            ],
            "keep mounts to ourselves",
        );
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        program.must(
            libc::SYS_mount,
            &[
                proc.into(),
                target.into(),
                proc.into(),
                flags.into(),
                0.into(),
            ],
            "mount its own /proc",
        );
        if self.plan.terminals {
            let (devpts, pts) = (program.string("devpts"), program.string("/dev/pts"));
            let (ptmx, multiplexer) =
                (program.string("/dev/pts/ptmx"), program.string("/dev/ptmx"));
            let options = program.string("newinstance,ptmxmode=0666,mode=620,gid=5");
            let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
            let args = [
                devpts.into(),
                pts.into(),
                devpts.into(),
                flags.into(),
                options.into(),
            ];
            program.must(libc::SYS_mount, &args, "mount its own /dev/pts");
            let args = [
                ptmx.into(),
                multiplexer.into(),
                0.into(),
                libc::MS_BIND.into(),
                0.into(),
            ];
            program.must(libc::SYS_mount, &args, "make /dev/ptmx lead there");
        }
        namespaces::settle(&mut program, own);
        self.run(INIT, "a namespace", &program)
    }

    /// The init of the namespace becomes a program that waits for the job's processes.
    pub(super) fn become_init(&mut self, options: &RestoreOptions<'_>) -> Result<(), RestoreError> {
        let mut argv: Vec<String> = options
            .init
            .iter()
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        argv.push(self.snapshot.root.to_string());
        let mut program = Program::new();
        let pointers: Vec<_> = argv.iter().map(|arg| program.string(arg)).collect();
        let path = pointers[0];
        let array = program.words(&vec![0; argv.len() + 1]);
        for (nth, pointer) in pointers.iter().enumerate() {
            program.point(array, 8 * nth, *pointer);
        }
        let none = program.words(&[0]);
        program.must(
            libc::SYS_close_range,
            &[0.into(), u32::MAX.into(), 0.into()],
            "close everything",
        );
        program.must(
            libc::SYS_execve,
            &[path.into(), array.into(), none.into()],
            format!("run {}", argv[0]),
        );
        let (task, slot) = self.take(INIT)?;
        let mut run = stub::Run::new(slot, &program);
        let who = "the init of the job's namespace";
        let running = run.start(task).map_err(|error| broke(who, error))?;
        let Ok(mut running) = running else {
            return Err(missing(INIT));
        };
        loop {
            match running.wait().map_err(failed(who))? {
                Waited::Gone => return Err(missing(INIT)),
                Waited::Stopped(task) if task.stop() == Stop::Event(libc::PTRACE_EVENT_EXEC) => {
                    task.set_signal_mask(0).map_err(failed(who))?;
                    self.put(INIT, task);
                    return Ok(());
                }
                Waited::Stopped(task) if matches!(task.stop(), Stop::Signal(_)) => {
                    return Err(failed(format!("{who}: running {}", argv[0]))(
                        io::Error::other("it could not be executed"),
                    ));
                }
                Waited::Stopped(task) => running = task.resume(0).map_err(failed(who))?,
            }
        }
    }
}
