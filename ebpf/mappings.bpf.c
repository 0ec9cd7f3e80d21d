// SPDX-License-Identifier: MIT OR GPL-2.0
/* The mappings of a process, one record each: what /proc/PID/smaps says of them except for counting their pages. */
#include "kernel.h"
#include "records.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* The license as the kernel wants to know it (include/linux/license.h): reading kernel memory is for compatible ones only. */
char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define PAGE_SHIFT 12

/* prctl(2), PR_SET_VMA */
static __always_inline int may_be_named(__u32 kind, struct vm_area_struct *vma)
{
	if (!bpf_core_field_exists(vma->anon_name))
		return 0;
	return kind == MAPPING_ANONYMOUS ||
	       (kind == MAPPING_FILE &&
		bpf_core_field_offset(vma->anon_name) != bpf_core_field_offset(vma->shared));
}

SEC("iter/task_vma")
int mappings(struct bpf_iter__task_vma *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct task_struct *task = ctx->task;
	struct vm_area_struct *vma = ctx->vma;
	struct mapping record = {};
	char name[NAME_SIZE] = {};
	struct mm_struct *mm;
	struct file *file;

	/* Threads that do not share their leader's descriptors come up too. */
	if (!task || !vma || task->pid != task->tgid)
		return 0;
	record.start = vma->vm_start;
	record.end = vma->vm_end;
	record.flags = vma->vm_flags;
	file = BPF_CORE_READ(vma, vm_file);
	mm = BPF_CORE_READ(vma, vm_mm);
	/* The order of names is that of fs/proc/task_mmu.c, get_vma_name. */
	if (file) {
		record.kind = MAPPING_FILE;
		record.offset = (__u64)vma->vm_pgoff << PAGE_SHIFT;
		record.file = (__u64)file;
		record.inode = BPF_CORE_READ(file, f_inode, i_ino);
		record.device = BPF_CORE_READ(file, f_inode, i_sb, s_dev);
		record.block_size = BPF_CORE_READ(file, f_inode, i_sb, s_blocksize);
	} else if (BPF_CORE_READ(vma, vm_ops, name)) {
		struct vm_special_mapping *special = BPF_CORE_READ(vma, vm_private_data);
		const char *text = BPF_CORE_READ(special, name);

		record.kind = MAPPING_SPECIAL;
		record.named = bpf_probe_read_kernel_str(name, sizeof(name), text) > 1;
	} else if (mm && record.start <= BPF_CORE_READ(mm, brk) && record.end >= BPF_CORE_READ(mm, start_brk)) {
		record.kind = MAPPING_HEAP;
	} else if (mm && record.start <= BPF_CORE_READ(mm, start_stack) &&
		   record.end >= BPF_CORE_READ(mm, start_stack)) {
		record.kind = MAPPING_STACK;
	}
	if (may_be_named(record.kind, vma)) {
		struct anon_vma_name *anonymous = BPF_CORE_READ(vma, anon_name);

		if (anonymous)
			record.named = bpf_probe_read_kernel_str(name, sizeof(name), anonymous->name) > 1;
	}
	bpf_seq_write(seq, &record, sizeof(record));
	if (record.named)
		bpf_seq_write(seq, name, sizeof(name));
	return 0;
}
