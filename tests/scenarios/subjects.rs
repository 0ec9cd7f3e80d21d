//! Every subject in every mode: one line a subject, one line a mode.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use tests::{
    Compiler, Pids, Subject, Way, interrupt, manifest_dir, sabotaged, same_without_bpf,
    uninterrupted,
};

/// One module a subject, one test a mode.
macro_rules! subjects {
    ($($name:ident = $subject:expr;)*) => {
        /// The sources that the table covers.
        const COVERED: &[Subject] = &[$($subject),*];

        $(mod $name {
            use super::*;
            const SUBJECT: Subject = $subject;

            #[test]
            fn uninterrupted() { super::uninterrupted(&SUBJECT); }
            #[test]
            fn sabotaged() { super::sabotaged(&SUBJECT); }
            #[test]
            fn runs_on() { interrupt(&SUBJECT, Way::RunsOn, Pids::Free); }
            #[test]
            fn same_without_bpf() { super::same_without_bpf(&SUBJECT); }
            #[test]
            fn full() { interrupt(&SUBJECT, Way::Full, Pids::Free); }
            #[test]
            fn lazy() { interrupt(&SUBJECT, Way::Lazy, Pids::Free); }
            #[test]
            fn lazy_pids_taken() { interrupt(&SUBJECT, Way::Lazy, Pids::Taken); }
            #[test]
            fn chain() { interrupt(&SUBJECT, Way::Chain, Pids::Free); }
            #[test]
            fn chain_pids_taken() { interrupt(&SUBJECT, Way::Chain, Pids::Taken); }
            #[test]
            fn by_pid() { interrupt(&SUBJECT, Way::ByPid, Pids::Free); }
            #[test]
            fn full_pids_taken() { interrupt(&SUBJECT, Way::Killed, Pids::Taken); }
        })*
    };
}

/// A subject built with gcc from the file of its own name.
const fn own(name: &'static str) -> Subject {
    Subject::new(name)
}

subjects! {
    // The tree of processes.
    threads = own("threads");
    children = own("children");
    orphans = own("orphans").with_orphans();
    zombies = own("zombies");
    sessions = own("sessions").with_orphans();
    subreaper = own("subreaper");
    pdeathsig = own("pdeathsig");
    stopped = own("stopped");
    many_threads = own("many_threads");
    many_processes = own("many_processes");
    forking = own("forking");
    vfork_exec = own("vfork_exec");
    dying = own("dying");
    dead_leader = own("dead_leader");

    // CPU and system calls.
    registers = own("registers");
    syscalls = own("syscalls");
    futexes = own("futexes");
    robust_list = own("robust_list");
    rseq = own("rseq");
    clear_child_tid = own("clear_child_tid");

    syscall_dispatch = own("syscall_dispatch");

    // Memory.
    anonymous = own("anonymous");
    heap = own("heap");
    stack = own("stack");
    file_private = own("file_private");
    file_shared = own("file_shared");
    shared_anonymous = own("shared_anonymous");
    guards = own("guards");
    droppable = own("droppable");
    hugetlb = own("hugetlb");
    mlock = own("mlock");
    mappings = own("mappings");
    remapping = own("remapping");
    reserve = own("reserve");
    paging = own("paging");
    vdso = own("vdso");
    writing = own("writing");
    mm_layout = own("mm_layout");

    // Signals and timers.
    signal_handlers = own("signal_handlers");
    signal_pending = own("signal_pending");
    sigmask = own("sigmask");
    altstack = own("altstack");
    itimers = own("itimers");
    posix_timers = own("posix_timers");

    clocks = own("clocks");

    // Namespaces.
    own_namespaces = own("own_namespaces");
    own_users = own("own_users");

    // Identity.
    cgroups = own("cgroups");
    credentials = own("credentials");
    no_new_privs = own("no_new_privs");
    rlimits = own("rlimits");
    umask_cwd = own("umask_cwd");
    thread_cwd = own("thread_cwd");
    scheduling = own("scheduling");
    oom_score_adj = own("oom_score_adj");
    comm = own("comm");
    personality = own("personality");
    dumpable = own("dumpable");
    attributes = own("attributes");
    autogroup = own("autogroup");
    seccomp = own("seccomp");

    // Descriptors.
    files = own("files");
    many_files = own("many_files");
    directories = own("directories");
    devices = own("devices");
    pipes = own("pipes");
    packets = own("packets");
    fifos = own("fifos");
    eventfd = own("eventfd");
    epoll = own("epoll");
    pty = own("pty");
    timerfd = own("timerfd");
    signalfd = own("signalfd");
    pidfd = own("pidfd");
    inotify = own("inotify");
    notified = own("notified");
    o_path = own("o_path");
    memfd = own("memfd");
    proc_self = own("proc_self");
    deleted_files = own("deleted_files");
    deleted_executable = own("deleted_executable");
    deleted_directories = own("deleted_directories");
    shm_files = own("shm_files");
    sysv_shm = own("sysv_shm");
    sysv_sem = own("sysv_sem");
    sysv_msg = own("sysv_msg");
    posix_mq = own("posix_mq");
    locks = own("locks");
    unix_pairs = own("unix_pairs");
    unix_names = own("unix_names");
    tcp = own("tcp");
    tcp_states = own("tcp_states");
    udp = own("udp");
    udp_queue = own("udp_queue");
    raw = own("raw");
    socket_options = own("socket_options");

    // Other C libraries, static binaries, other runtimes.
    glibc_static_threads = Subject::variant("glibc_static_threads", "threads", Compiler::GccStatic);
    glibc_static_syscalls = Subject::variant("glibc_static_syscalls", "syscalls", Compiler::GccStatic);
    musl_threads = Subject::variant("musl_threads", "threads", Compiler::Musl);
    musl_syscalls = Subject::variant("musl_syscalls", "syscalls", Compiler::Musl);
    musl_static_threads = Subject::variant("musl_static_threads", "threads", Compiler::MuslStatic);
    musl_static_forking = Subject::variant("musl_static_forking", "forking", Compiler::MuslStatic);
    go = Subject::variant("go_program", "go", Compiler::Go);
}

#[test]
fn every_source_is_covered() {
    let elsewhere = [
        "file_changed",
        "random_memory",
        "probed",
        "refused_",
        "tcp_outside",
    ]; // have scenarios of their own
    for entry in std::fs::read_dir(manifest_dir().join("subjects"))
        .unwrap()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let stem = name
            .strip_suffix(".c")
            .unwrap_or(if name == "go" { "go" } else { continue });
        let covered = COVERED.iter().any(|subject| subject.source == stem);
        let special = elsewhere.iter().any(|prefix| stem.starts_with(prefix));
        assert!(covered || special, "{name} is in no table");
    }
}
