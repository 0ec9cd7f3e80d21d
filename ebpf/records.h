/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * What iterators write for user space, which reads it in userspace/tracker: host byte order, no padding between or in
 * records. Addresses of kernel objects serve as identities only; user space never shows them.
 */
#ifndef CKPTD_RECORDS_H
#define CKPTD_RECORDS_H

/* Longest name of a mapping with its end (mm/madvise.c, ANON_VMA_NAME_MAX_LEN). */
#define NAME_SIZE 80

enum mapping_kind {
	MAPPING_ANONYMOUS,
	/* Of a file, or of shared memory. */
	MAPPING_FILE,
	/* The kernel's own, like the vdso; `name` follows. */
	MAPPING_SPECIAL,
	MAPPING_HEAP,
	MAPPING_STACK,
};

struct mapping {
	__u64 start;
	__u64 end;
	/* VM_* of the running kernel. */
	__u64 flags;
	/* Of a file: in bytes. */
	__u64 offset;
	/* Of a file: which open file it is. */
	__u64 file;
	__u64 inode;
	/* The kernel's own dev_t: major << 20 | minor. */
	__u32 device;
	/* Of hugetlbfs: the size of a page in bytes. Of other files: nothing to rely on. */
	__u32 block_size;
	/* enum mapping_kind */
	__u32 kind;
	/* Whether NAME_SIZE bytes with a name follow. */
	__u32 named;
};

/* Paths that are longer, with their end, are left to user space: this has to fit on the stack of a program. */
#define PATH_SIZE 256

struct descriptor {
	/* Which open file it leads to. */
	__u64 file;
	__u64 inode;
	__u64 position;
	__u64 size;
	/* Nanoseconds since the epoch. */
	__u64 modified;
	__u32 fd;
	/* As in struct mapping. */
	__u32 device;
	/* S_IF* and permissions. */
	__u32 mode;
	/* O_* as /proc/PID/fdinfo shows them: with O_CLOEXEC. */
	__u32 flags;
	/* Whether there may be more to know: it has or had locks, or sends signals. */
	__u32 special;
	/* Bytes that follow: where it leads, with a zero at the end; 0 where that does not fit. */
	__u32 path_size;
	/* Names of the file. */
	__u32 links;
	__u32 padding;
};

/* Threads in more groups are left to user space. */
#define GROUPS_MAX 32

struct thread {
	__u64 altstack;
	__u64 altstack_size;
	__u64 clear_child_tid;
	/* Nanoseconds. */
	__u64 timer_slack;
	/* How the kernel would continue a wait that was interrupted, if it was: by which function; until when (nanoseconds), were it futex(2),
	 * nanosleep(2) by sleep_clock, or poll(2). */
	__u64 restart;
	__u64 futex_end;
	__u64 sleep_end;
	__u64 poll_end;
	/* Inheritable, permitted, effective, bounding, ambient. */
	__u64 capabilities[5];
	/* Numbered as in the first pid namespace, and as in its own. */
	__u32 tid;
	__u32 inner_tid;
	__u32 altstack_flags;
	__u32 personality;
	__u32 death_signal;
	__u32 securebits;
	/* Real, effective, saved, of the file system: first users, then groups. */
	__u32 ids[8];
	__u32 no_new_privs;
	__u32 umask;
	/* Whether root, working directory and umask are its leader's too. */
	__u32 shares_fs;
	/* At most GROUPS_MAX of these follow behind struct credentials, each a __u32. */
	__u32 group_count;
	char comm[16];
	/* Whether a struct process follows, and behind it SIGNALS actions. */
	__u32 leads;
	__u32 sleep_clock;
	/* Whether it may have what only itself can be asked about (engine/attributes.rs). */
	__u32 special;
	/* Mode of seccomp(2). */
	__u32 seccomp;
};

/* Follows each struct thread. */
struct credentials {
	/* The beginning of what security modules keep with its credentials. */
	__u64 security[8];
	/* Its session keyring, if there is something in it. */
	__u64 session;
	/* Whether there is something in its own keyring or that of its process. */
	__u32 keys;
	__u32 padding;
};

struct process {
	__u64 brk;
	/* The low bits are how it may be dumped (linux/sched/coredump.h). */
	__u64 mm_flags;
	__u32 subreaper;
	/* Whether there may be interval timers or POSIX timers. */
	__u32 timers;
	/* Which of the processes with its pid it is, and which state of its mappings: the same as long as none changes. 0: not to be told. */
	__u64 born;
	__u64 map_generation;
	/* Whether poll_end of its threads can be told on this kernel. */
	__u32 tells_poll;
	__u32 padding;
	/* As `special` of a thread. */
	__u32 special;
	/* MEMBARRIER_STATE_* (linux/sched/mm.h) */
	__u32 barriers;
};

#define SIGNALS 64

/* One for each signal from 1 on. */
struct action {
	__u64 handler;
	__u64 flags;
	__u64 restorer;
	__u64 mask;
};

/* What may change of a process. */
enum change {
	CHANGE_THREADS,
	CHANGE_DESCRIPTORS,
	CHANGE_MAPPINGS,
	CHANGE_SIGNALS,
	CHANGE_TIMERS,
	CHANGE_CREDENTIALS,
	CHANGES,
};

/* A process of a job. */
struct member {
	/* When it was seen first, in nanoseconds of CLOCK_MONOTONIC: tells it from a later one with its pid. */
	__u64 since;
	/* How often each has changed. */
	__u32 changes[CHANGES];
};

/* Where a thread stands among the processes of the machine. */
struct task {
	/* When it was born, in nanoseconds of CLOCK_MONOTONIC. */
	__u64 born;
	__u32 tid;
	__u32 tgid;
	/* The process that it is a child of, and the thread of that which made or adopted it. */
	__u32 parent;
	__u32 parent_thread;
	/* Whether it is a zombie, or on its way there. */
	__u32 ended;
	__u32 padding;
};

/* More sets in one list, and more semaphores in a set, are left to user space. */
#define UNDO_SETS 64
#define UNDO_SEMAPHORES 256

/* UNDO_SEMAPHORES of __s16 follow: what is added to each semaphore in the end. */
struct undo {
	/* Which list it is in: threads share theirs. */
	__u64 list;
	__u32 tid;
	__u32 set;
};

#endif
