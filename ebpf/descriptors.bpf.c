// SPDX-License-Identifier: MIT OR GPL-2.0
/* The descriptors of a process, one record each: what /proc/PID/fd and /proc/PID/fdinfo say of any kind of file. */
#include "kernel.h"
#include "records.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* The license as the kernel wants to know it (include/linux/license.h): reading kernel memory is for compatible ones only. */
char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define O_CLOEXEC 02000000
#define WORD_BITS 64

static __always_inline int closes_on_exec(struct task_struct *task, __u32 fd)
{
	unsigned long *bits = BPF_CORE_READ(task, files, fdt, close_on_exec);
	unsigned long word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), bits + fd / WORD_BITS);
	return word >> fd % WORD_BITS & 1;
}

/* fcntl(F_SETOWN), fcntl(F_SETSIG) */
static __always_inline int sends_signals(struct file *file)
{
	struct file___embedded *older = (void *)file;

	if (bpf_core_field_exists(file->f_owner))
		return BPF_CORE_READ(file, f_owner) != 0;
	return BPF_CORE_READ(older, f_owner.pid) || BPF_CORE_READ(older, f_owner.signum);
}

static __always_inline __u64 modified(struct inode *inode)
{
	struct inode___hidden *hidden = (void *)inode;
	struct inode___older *older = (void *)inode;

	if (bpf_core_field_exists(inode->i_mtime_sec))
		return BPF_CORE_READ(inode, i_mtime_sec) * 1000000000ull + BPF_CORE_READ(inode, i_mtime_nsec);
	if (bpf_core_field_exists(hidden->__i_mtime))
		return BPF_CORE_READ(hidden, __i_mtime.tv_sec) * 1000000000ull + BPF_CORE_READ(hidden, __i_mtime.tv_nsec);
	return BPF_CORE_READ(older, i_mtime.tv_sec) * 1000000000ull + BPF_CORE_READ(older, i_mtime.tv_nsec);
}

SEC("iter/task_file")
int descriptors(struct bpf_iter__task_file *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct descriptor record = {};
	char path[PATH_SIZE] = {};
	struct inode *inode;
	long size;

	/* Threads that do not share their leader's descriptors come up too. */
	if (!task || !file || task->pid != task->tgid)
		return 0;
	record.file = (__u64)file;
	inode = BPF_CORE_READ(file, f_inode);
	record.inode = BPF_CORE_READ(inode, i_ino);
	record.position = file->f_pos;
	record.size = BPF_CORE_READ(file, f_inode, i_size);
	record.modified = modified(BPF_CORE_READ(file, f_inode));
	record.links = BPF_CORE_READ(file, f_inode, i_nlink);
	record.fd = ctx->fd;
	record.device = BPF_CORE_READ(inode, i_sb, s_dev);
	record.mode = BPF_CORE_READ(inode, i_mode);
	record.flags = file->f_flags & ~O_CLOEXEC;
	if (closes_on_exec(task, ctx->fd))
		record.flags |= O_CLOEXEC;
	record.special = BPF_CORE_READ(inode, i_flctx) || sends_signals(file);
	size = bpf_d_path(&file->f_path, path, sizeof(path));
	if (size < 0 || size >= PATH_SIZE)
		size = 0;
	record.path_size = size;
	bpf_seq_write(seq, &record, sizeof(record));
	/* The verifier of Linux 6.1 wants to see the bound here, where the compiler knows it already. */
	asm volatile("" : "+r"(size));
	size &= PATH_SIZE - 1;
	if (size)
		bpf_seq_write(seq, path, size);
	return 0;
}
