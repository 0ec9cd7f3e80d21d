/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * The few kernel structures that the programs here read, with the few members they read of them. Where a member really
 * lies is filled in when a program is loaded, from the running kernel's own description (BTF); what a kernel may lack is
 * asked for with bpf_core_field_exists. Order and completeness do not matter.
 */
#ifndef CKPTD_KERNEL_H
#define CKPTD_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef int __s32;
typedef long long __s64;
/* bpf_helper_defs.h names them. */
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

enum bpf_map_type {
	BPF_MAP_TYPE_UNSPEC,
	BPF_MAP_TYPE_HASH,
	BPF_MAP_TYPE_ARRAY,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct super_block {
	__u32 s_dev;
	unsigned long s_blocksize;
};

struct inode {
	unsigned long i_ino;
	struct super_block *i_sb;
};

struct file {
	struct inode *f_inode;
};

struct mm_struct {
	unsigned long start_brk;
	unsigned long brk;
	unsigned long start_stack;
};

struct vm_operations_struct {
	void *name;
};

struct vm_special_mapping {
	const char *name;
};

struct anon_vma_name {
	char name[0];
};

struct vm_area_struct {
	unsigned long vm_start;
	unsigned long vm_end;
	struct mm_struct *vm_mm;
	unsigned long vm_flags;
	const struct vm_operations_struct *vm_ops;
	unsigned long vm_pgoff;
	struct file *vm_file;
	void *vm_private_data;
	struct anon_vma_name *anon_name;
};

struct task_struct {
	__s32 pid;
	__s32 tgid;
};

struct seq_file;

#pragma clang attribute pop

/* What iterators are called with (kernel/bpf/task_iter.c, kernel/bpf/bpf_iter.c): the same in every kernel. */

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
};

struct bpf_iter__task_vma {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct vm_area_struct *vma;
};

#endif
