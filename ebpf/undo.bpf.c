// SPDX-License-Identifier: MIT OR GPL-2.0
/* What the kernel undoes on System V semaphores when the threads of a process have ended (SEM_UNDO of semop(2)): a record for each thread and
 * set, which is all that user space cannot ask for. */
#include "kernel.h"
#include "records.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* The license as the kernel wants to know it (include/linux/license.h): reading kernel memory is for compatible ones only. */
char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define PIECE 64

SEC("iter/task")
int undo(struct bpf_iter__task *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct task_struct *task = ctx->task;
	struct undo record = {};
	struct sem_undo_list *list;
	struct list_head *next, *head;

	if (!task)
		return 0;
	list = BPF_CORE_READ(task, sysvsem.undo_list);
	if (!list)
		return 0;
	head = &list->list_proc;
	next = BPF_CORE_READ(list, list_proc.next);
	record.list = (__u64)list;
	record.tid = BPF_CORE_READ(task, pid);
	for (int nth = 0; nth < UNDO_SETS; nth++) {
		struct sem_undo *entry = 0;
		__s16 piece[PIECE];

		if (!next || next == head)
			return 0;
		entry = (void *)next - bpf_core_field_offset(entry->list_proc);
		record.set = BPF_CORE_READ(entry, semid);
		bpf_seq_write(seq, &record, sizeof(record));
		/* A set that has fewer semaphores says nothing with the rest. */
		for (int at = 0; at < UNDO_SEMAPHORES; at += PIECE) {
			__builtin_memset(piece, 0, sizeof(piece));
			bpf_probe_read_kernel(piece, sizeof(piece), (__s16 *)&entry->semadj + at);
			bpf_seq_write(seq, piece, sizeof(piece));
		}
		next = BPF_CORE_READ(entry, list_proc.next);
	}
	return 0;
}
