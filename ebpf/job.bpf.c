// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Which processes belong to a job, and what may have changed of each. The picture is kept here, in a table that user space reads when it
 * likes: there is no stream of events to fall behind. What the table cannot take is counted, and user space looks for itself.
 *
 * The first programs follow fork, exec and exit. The others find out what changes within a process, either where the kernel does it
 * (functions, where fentry programs are allowed) or at the end of each system call (which taxes every call of every process).
 */
#include "kernel.h"
#include "records.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* The license as the kernel wants to know it (include/linux/license.h): reading kernel memory is for compatible ones only. */
char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* The job's processes by tgid, as the first pid namespace numbers them. Its size is given when it is made. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct member);
} members SEC(".maps");

/* How many processes did not fit. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} missed SEC(".maps");

static __always_inline struct member *member(__u32 tgid)
{
	return bpf_map_lookup_elem(&members, &tgid);
}

static __always_inline __u32 current(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

static __always_inline void changed(struct member *member, enum change what)
{
	__sync_fetch_and_add(&member->changes[what], 1);
}

static __always_inline void current_changed(enum change what)
{
	struct member *of = member(current());

	if (of)
		changed(of, what);
}

/* kernel/fork.c, kernel_clone: `parent` is who called, also with CLONE_PARENT. */
SEC("tp_btf/sched_process_fork")
int forked(__u64 *ctx)
{
	struct task_struct *parent = (void *)ctx[0];
	struct task_struct *child = (void *)ctx[1];
	struct member *of = member(parent->tgid);
	struct member born = {};
	__u32 tgid = child->tgid, nothing = 0;
	__u64 *count;

	if (!of)
		return 0;
	if (tgid == parent->tgid) {
		changed(of, CHANGE_THREADS);
		return 0;
	}
	born.since = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&members, &tgid, &born, BPF_ANY)) {
		count = bpf_map_lookup_elem(&missed, &nothing);
		if (count)
			__sync_fetch_and_add(count, 1);
	}
	return 0;
}

/* fs/exec.c, exec_binprm: mappings and handlers are gone, as are threads, timers and some descriptors; credentials may be others. */
SEC("tp_btf/sched_process_exec")
int executed(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct member *of = member(task->tgid);

	if (!of)
		return 0;
#pragma unroll
	for (int what = 0; what < CHANGES; what++)
		changed(of, what);
	return 0;
}

/* kernel/exit.c, do_exit: of each thread, and for the last one `live` is 0 already. */
SEC("tp_btf/sched_process_exit")
int exited(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct member *of = member(task->tgid);
	__u32 tgid = task->tgid;

	if (!of)
		return 0;
	if (BPF_CORE_READ(task, signal, live.counter))
		changed(of, CHANGE_THREADS);
	else
		bpf_map_delete_elem(&members, &tgid);
	return 0;
}

/* Each program of this kind is one function of the kernel's and what it changes. */
#define FUNCTION(function, what)               \
	SEC("fentry/" #function)               \
	int in_##function(void *ctx)           \
	{                                      \
		current_changed(what);         \
		return 0;                      \
	}

FUNCTION(fd_install, CHANGE_DESCRIPTORS)
FUNCTION(filp_close, CHANGE_DESCRIPTORS)
FUNCTION(vm_stat_account, CHANGE_MAPPINGS)
FUNCTION(do_brk_flags, CHANGE_MAPPINGS)
FUNCTION(do_sigaction, CHANGE_SIGNALS)
FUNCTION(__x64_sys_setitimer, CHANGE_TIMERS)
FUNCTION(__x64_sys_timer_create, CHANGE_TIMERS)
FUNCTION(__x64_sys_timer_settime, CHANGE_TIMERS)
FUNCTION(__x64_sys_timer_delete, CHANGE_TIMERS)
FUNCTION(commit_creds, CHANGE_CREDENTIALS)

/* arch/x86/entry/syscalls/syscall_64.tbl */
static __always_inline int change_of(long call)
{
	switch (call) {
	case 2: case 3: case 22: case 32: case 33: case 41: case 43: case 53: case 72: case 85: case 213: case 253: case 257:
	case 282: case 283: case 284: case 288: case 289: case 290: case 291: case 292: case 293: case 294: case 304: case 319:
	case 323: case 425: case 434: case 436: case 437: case 438:
		return CHANGE_DESCRIPTORS;
	case 9: case 10: case 11: case 12: case 25: case 28: case 29: case 30: case 67: case 149: case 150: case 151: case 152:
	case 216: case 325: case 329: case 462:
		return CHANGE_MAPPINGS;
	case 13: case 131:
		return CHANGE_SIGNALS;
	case 37: case 38: case 222: case 223: case 226:
		return CHANGE_TIMERS;
	case 105: case 106: case 113: case 114: case 116: case 117: case 119: case 122: case 123: case 126:
		return CHANGE_CREDENTIALS;
	default:
		return -1;
	}
}

/* prctl(2) may change anything. */
#define PRCTL 157

SEC("tp_btf/sys_exit")
int called(__u64 *ctx)
{
	struct pt_regs *registers = (void *)ctx[0];
	struct member *of = member(current());
	long call;
	int what;

	if (!of)
		return 0;
	call = registers->orig_ax;
	what = change_of(call);
	if (what >= 0 && what < CHANGES)
		changed(of, what);
	if (call == PRCTL) {
		changed(of, CHANGE_CREDENTIALS);
		changed(of, CHANGE_MAPPINGS);
	}
	return 0;
}
