// SPDX-License-Identifier: MIT OR GPL-2.0
/* Every thread of the machine and whose child it is: the trees of processes, in one look. */
#include "kernel.h"
#include "records.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* The license as the kernel wants to know it (include/linux/license.h): reading kernel memory is for compatible ones only. */
char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("iter/task")
int tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct task record = {};

	if (!task || task->flags & PF_KTHREAD)
		return 0;
	record.born = task->start_time;
	record.tid = task->pid;
	record.tgid = task->tgid;
	/* The parent of all its threads: threads may have different ones only by way of ptrace, which is `parent`. */
	record.parent = BPF_CORE_READ(task, real_parent, tgid);
	record.parent_thread = BPF_CORE_READ(task, real_parent, pid);
	record.ended = task->exit_state != 0;
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
