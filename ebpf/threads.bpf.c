// SPDX-License-Identifier: MIT OR GPL-2.0
/* The threads of a process, one record each, its leader first with what the process has as a whole: much of it only the threads
 * themselves could be asked otherwise. */
#include "kernel.h"
#include "records.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* The license as the kernel wants to know it (include/linux/license.h): reading kernel memory is for compatible ones only. */
char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* include/linux/sched.h */
#define PFA_NO_NEW_PRIVS 0
/* include/linux/hrtimer.h */
#define HRTIMER_STATE_ENQUEUED 1

/* Up to Linux 6.2 two words of 32 bits, since then one of 64. */
static __always_inline __u64 capabilities(const struct kernel_capabilities *set)
{
	__u64 bits = 0;

	bpf_probe_read_kernel(&bits, sizeof(bits), set);
	return bits;
}

static __always_inline void who(struct thread *record, const struct cred *cred)
{
	record->capabilities[0] = capabilities(&cred->cap_inheritable);
	record->capabilities[1] = capabilities(&cred->cap_permitted);
	record->capabilities[2] = capabilities(&cred->cap_effective);
	record->capabilities[3] = capabilities(&cred->cap_bset);
	record->capabilities[4] = capabilities(&cred->cap_ambient);
	record->securebits = BPF_CORE_READ(cred, securebits);
	record->ids[0] = BPF_CORE_READ(cred, uid.val);
	record->ids[1] = BPF_CORE_READ(cred, euid.val);
	record->ids[2] = BPF_CORE_READ(cred, suid.val);
	record->ids[3] = BPF_CORE_READ(cred, fsuid.val);
	record->ids[4] = BPF_CORE_READ(cred, gid.val);
	record->ids[5] = BPF_CORE_READ(cred, egid.val);
	record->ids[6] = BPF_CORE_READ(cred, sgid.val);
	record->ids[7] = BPF_CORE_READ(cred, fsgid.val);
	record->group_count = BPF_CORE_READ(cred, group_info, ngroups);
}

static __always_inline __u32 inner_tid(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	struct upid number = {};

	bpf_probe_read_kernel(&number, sizeof(number), &pid->numbers[0] + BPF_CORE_READ(pid, level));
	return number.nr;
}

static __always_inline int has_timers(struct signal_struct *signal)
{
	void *first = 0;

	bpf_probe_read_kernel(&first, sizeof(first), &signal->posix_timers);
	/* An empty list_head leads to itself. */
	if (bpf_core_field_size(signal->posix_timers) == sizeof(first) ? first != 0 :
									 first != (void *)&signal->posix_timers)
		return 1;
	if (!bpf_core_field_exists(signal->real_timer.state) ||
	    BPF_CORE_READ(signal, real_timer.state) & HRTIMER_STATE_ENQUEUED)
		return 1;
	return BPF_CORE_READ(signal, it_real_incr) || BPF_CORE_READ(signal, it[0].expires) ||
	       BPF_CORE_READ(signal, it[0].incr) || BPF_CORE_READ(signal, it[1].expires) ||
	       BPF_CORE_READ(signal, it[1].incr);
}

static __always_inline __u64 mm_flags(struct mm_struct *mm)
{
	struct mm_struct___bitmap *newer = (void *)mm;

	if (bpf_core_field_exists(newer->flags.__mm_flags))
		return BPF_CORE_READ(newer, flags.__mm_flags[0]);
	return BPF_CORE_READ(mm, flags);
}

/* TIF_NOCPUID and TIF_NOTSC (arch/x86/include/asm/thread_info.h) are 15 and 16, since Linux 6.18 20 and 21. What else has those
 * numbers is rarely set, and would only cost a question. */
#define TIF_SPECIAL (1UL << 15 | 1UL << 16 | 1UL << 20 | 1UL << 21)
/* include/linux/sched.h: PF_MCE_PROCESS, PF_MCE_EARLY, PF_MEMALLOC_NOIO */
#define PF_SPECIAL (0x80 | 0x08000000 | 0x00080000)
/* include/linux/mm_types.h: MMF_HAS_MDWE, MMF_HAS_MDWE_NO_INHERIT, MMF_VM_MERGE_ANY; since Linux 6.18 MMF_DISABLE_THP_EXCEPT_ADVISED,
 * the number of which meant something harmless before. */
#define MMF_SPECIAL (1UL << 28 | 1UL << 29 | 1UL << 30 | 1UL << 23)

/* include/linux/mm.h: VM_LOCKED and VM_LOCKONFAULT, which new mappings get (mlockall(2)). */
#define VM_LOCK (0x2000 | 0x80000)

static __always_inline int is_special(struct task_struct *task)
{
	return (task->thread_info.flags & TIF_SPECIAL) || (task->flags & PF_SPECIAL);
}

static __always_inline int has_ldt(struct mm_struct *mm)
{
	return bpf_core_field_exists(mm->context.ldt) && BPF_CORE_READ(mm, context.ldt);
}

static __always_inline void wait(struct thread *record, struct task_struct *task)
{
	record->restart = (__u64)BPF_CORE_READ(task, restart_block.fn);
	record->futex_end = BPF_CORE_READ(task, restart_block.futex.time);
	record->sleep_end = BPF_CORE_READ(task, restart_block.nanosleep.expires);
	record->sleep_clock = BPF_CORE_READ(task, restart_block.nanosleep.clockid);
	if (bpf_core_field_exists(task->restart_block.poll.tv_sec))
		record->poll_end = BPF_CORE_READ(task, restart_block.poll.tv_sec) * 1000000000 +
				   BPF_CORE_READ(task, restart_block.poll.tv_nsec);
}

static __always_inline __u64 map_generation(struct task_struct *task, struct mm_struct *mm)
{
	struct mm_struct___sequence *newer = (void *)mm;
	struct mm_struct___counting *older = (void *)mm;
	/* An exec begins with other mappings. */
	__u64 executed = (BPF_CORE_READ(task, self_exec_id) + 1) << 32;

	if (bpf_core_field_exists(newer->mm_lock_seq.sequence))
		return executed | BPF_CORE_READ(newer, mm_lock_seq.sequence);
	if (bpf_core_field_exists(older->mm_lock_seq))
		return executed | (__u32)BPF_CORE_READ(older, mm_lock_seq);
	return 0;
}

static __always_inline int is_filled(struct key *keyring)
{
	if (bpf_core_field_exists(keyring->keys.nr_leaves_on_tree))
		return keyring && BPF_CORE_READ(keyring, keys.nr_leaves_on_tree);
	return keyring != 0;
}

static __always_inline void confidential(struct credentials *record, const struct cred *cred)
{
	struct key *session;

	bpf_probe_read_kernel(record->security, sizeof(record->security), BPF_CORE_READ(cred, security));
	if (!bpf_core_field_exists(cred->session_keyring))
		return;
	session = BPF_CORE_READ(cred, session_keyring);
	record->session = is_filled(session) ? (__u64)session : 0;
	record->keys = is_filled(BPF_CORE_READ(cred, process_keyring)) || is_filled(BPF_CORE_READ(cred, thread_keyring));
}

SEC("iter/task")
int threads(struct bpf_iter__task *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct task_struct *task = ctx->task;
	__u32 groups[GROUPS_MAX] __attribute__((aligned(8))) = {};
	struct thread record = {};
	struct process process = {};
	/* In the room that groups no longer take: all of it would not fit on the stack. */
	struct action *action = (void *)groups;
	struct sighand_struct *sighand;
	struct signal_struct *signal;
	const struct cred *cred;
	struct mm_struct *mm;
	long size;

	if (!task)
		return 0;
	cred = BPF_CORE_READ(task, real_cred);
	mm = BPF_CORE_READ(task, mm);
	signal = BPF_CORE_READ(task, signal);
	sighand = BPF_CORE_READ(task, sighand);
	record.tid = task->pid;
	record.inner_tid = inner_tid(task);
	record.altstack = task->sas_ss_sp;
	record.altstack_size = task->sas_ss_size;
	record.altstack_flags = task->sas_ss_flags;
	record.clear_child_tid = (__u64)BPF_CORE_READ(task, clear_child_tid);
	record.timer_slack = task->timer_slack_ns;
	record.personality = task->personality;
	record.death_signal = task->pdeath_signal;
	record.no_new_privs = task->atomic_flags >> PFA_NO_NEW_PRIVS & 1;
	record.shares_fs = BPF_CORE_READ(task, fs) == BPF_CORE_READ(task, group_leader, fs);
	record.umask = BPF_CORE_READ(task, fs, umask);
	bpf_probe_read_kernel(record.comm, sizeof(record.comm), task->comm);
	who(&record, cred);
	wait(&record, task);
	record.special = is_special(task);
	record.seccomp = task->seccomp.mode;
	record.leads = task->pid == task->tgid && mm && sighand;
	bpf_seq_write(seq, &record, sizeof(record));
	confidential((void *)groups, cred);
	bpf_seq_write(seq, groups, sizeof(struct credentials));

	size = record.group_count;
	if (size > GROUPS_MAX)
		size = GROUPS_MAX;
	size *= sizeof(groups[0]);
	if (size) {
		bpf_probe_read_kernel(groups, sizeof(groups), &BPF_CORE_READ(cred, group_info)->gid);
		/* The verifier of Linux 6.1 wants to see the bound here, where the compiler knows it already. */
		asm volatile("" : "+r"(size));
		size &= 2 * sizeof(groups) - 1;
		if (size <= sizeof(groups))
			bpf_seq_write(seq, groups, size);
	}
	if (!record.leads)
		return 0;

	process.brk = BPF_CORE_READ(mm, brk);
	process.mm_flags = mm_flags(mm);
	process.subreaper = BPF_CORE_READ_BITFIELD_PROBED(signal, is_child_subreaper);
	process.timers = has_timers(signal);
	process.born = task->start_time;
	process.map_generation = map_generation(task, mm);
	process.tells_poll = bpf_core_field_exists(task->restart_block.poll.tv_sec);
	process.special = (process.mm_flags & MMF_SPECIAL) || has_ldt(mm) ||
			  (BPF_CORE_READ(mm, def_flags) & VM_LOCK);
	process.barriers = BPF_CORE_READ(mm, membarrier_state.counter);
	bpf_seq_write(seq, &process, sizeof(process));
	/* Without leaving any out: the verifier would follow each of the ways through 64 decisions. */
	for (int nth = 0; nth < SIGNALS; nth++) {
		struct sigaction set = {};

		bpf_probe_read_kernel(&set, sizeof(set), &sighand->action[nth]);
		action->handler = (__u64)set.sa_handler;
		action->flags = set.sa_flags;
		action->restorer = (__u64)set.sa_restorer;
		action->mask = set.sa_mask.sig[0];
		bpf_seq_write(seq, action, sizeof(*action));
	}
	return 0;
}
