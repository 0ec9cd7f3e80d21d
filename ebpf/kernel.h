/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * The few kernel structures that the programs here read, with the few members they read of them. Where a member really
 * lies is filled in when a program is loaded, from the running kernel's own description (BTF); what a kernel may lack is
 * asked for with bpf_core_field_exists. Order and completeness do not matter. Arrays of open length have one element here: what relocates
 * the programs takes index 0 of an empty one for a mistake.
 *
 * Pointers are read with BPF_CORE_READ, never as p->q: for each that is loaded from what the verifier trusts, it looks through the names
 * of all types of the kernel, which takes milliseconds (Linux 6.18, kernel/bpf/verifier.c, btf_nested_type_is_trusted).
 */
#ifndef CKPTD_KERNEL_H
#define CKPTD_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
/* bpf_helper_defs.h names them. */
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

/* include/linux/sched.h */
#define PF_KTHREAD 0x00200000

/* include/uapi/linux/bpf.h */
#define BPF_ANY 0

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

struct timespec64 {
	long long tv_sec;
	long tv_nsec;
};

struct inode {
	__u16 i_mode;
	__u32 i_nlink;
	long long i_size;
	/* Since Linux 6.11. */
	long long i_mtime_sec;
	__u32 i_mtime_nsec;
	unsigned long i_ino;
	void *i_flctx;
	struct super_block *i_sb;
};

/* Since Linux 6.7. */
struct inode___hidden {
	struct timespec64 __i_mtime;
};

/* Before. */
struct inode___older {
	struct timespec64 i_mtime;
};

struct path {
	void *dentry;
};

struct fown_struct {
	void *pid;
	int signum;
};

struct file {
	__u32 f_flags;
	struct inode *f_inode;
	struct path f_path;
	long long f_pos;
	/* Since Linux 6.12. */
	struct fown_struct *f_owner;
};

/* Before. */
struct file___embedded {
	struct fown_struct f_owner;
};

struct fdtable {
	unsigned long *close_on_exec;
};

struct files_struct {
	struct fdtable *fdt;
};

struct atomic {
	int counter;
};

struct mm_struct {
	struct {
		void *ldt;
	} context;
	struct atomic membarrier_state;
	unsigned long def_flags;
	unsigned long start_brk;
	unsigned long brk;
	unsigned long start_stack;
	/* Up to Linux 6.17. */
	unsigned long flags;
};

/* Since. */
struct mm_struct___bitmap {
	struct {
		unsigned long __mm_flags[1];
	} flags;
};

/* Counts how often the mappings were locked to be changed (include/linux/mmap_lock.h), with CONFIG_PER_VMA_LOCK since Linux 6.4. */
struct mm_struct___counting {
	int mm_lock_seq;
};

/* Since Linux 6.14. */
struct mm_struct___sequence {
	struct {
		unsigned int sequence;
	} mm_lock_seq;
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
	/* Up to Linux 6.1 in one place with `shared`, which is for files. */
	struct anon_vma_name *anon_name;
	struct {
		unsigned long rb_subtree_last;
	} shared;
};

/* kernel_cap_t */
struct kernel_capabilities {
	__u8 bits[8];
};

/* kuid_t, kgid_t */
struct kernel_id {
	__u32 val;
};

struct group_info {
	int ngroups;
	struct kernel_id gid[1];
};

struct assoc_array {
	unsigned long nr_leaves_on_tree;
};

struct key {
	struct assoc_array keys;
};

struct cred {
	struct kernel_id uid;
	struct kernel_id gid;
	struct kernel_id suid;
	struct kernel_id sgid;
	struct kernel_id euid;
	struct kernel_id egid;
	struct kernel_id fsuid;
	struct kernel_id fsgid;
	__u32 securebits;
	struct kernel_capabilities cap_inheritable;
	struct kernel_capabilities cap_permitted;
	struct kernel_capabilities cap_effective;
	struct kernel_capabilities cap_bset;
	struct kernel_capabilities cap_ambient;
	struct group_info *group_info;
	struct key *session_keyring;
	struct key *process_keyring;
	struct key *thread_keyring;
	void *security;
};

struct fs_struct {
	int umask;
};

struct upid {
	int nr;
	void *ns;
};

struct pid {
	__u32 level;
	struct upid numbers[1];
};

struct sigset {
	unsigned long sig[1];
};

struct sigaction {
	void *sa_handler;
	unsigned long sa_flags;
	void *sa_restorer;
	struct sigset sa_mask;
};

struct k_sigaction {
	struct sigaction sa;
};

struct sighand_struct {
	struct k_sigaction action[64];
};

struct hrtimer {
	__u8 state;
};

struct cpu_itimer {
	__u64 expires;
	__u64 incr;
};

/* hlist_head since Linux 6.13, list_head before. */
struct hlist_head {
	void *first;
};

struct signal_struct {
	/* Threads that have not ended. */
	struct {
		int counter;
	} live;
	unsigned int is_child_subreaper : 1;
	struct hlist_head posix_timers;
	struct hrtimer real_timer;
	long long it_real_incr;
	struct cpu_itimer it[2];
};

/* What restart_syscall(2) goes on with. */
struct restart_block {
	void *fn;
	union {
		struct {
			__u64 time;
		} futex;
		struct {
			__u32 clockid;
			__u64 expires;
		} nanosleep;
		struct {
			unsigned long tv_sec;
			unsigned long tv_nsec;
		} poll;
	};
};

struct thread_info {
	unsigned long flags;
};

struct seccomp {
	int mode;
};

struct list_head {
	struct list_head *next;
};

struct sem_undo_list {
	struct list_head list_proc;
};

struct sem_undo {
	struct list_head list_proc;
	int semid;
	short semadj[1];
};

struct sysv_sem {
	struct sem_undo_list *undo_list;
};

struct task_struct {
	struct sysv_sem sysvsem;
	struct thread_info thread_info;
	struct seccomp seccomp;
	struct restart_block restart_block;
	__s32 pid;
	__s32 tgid;
	__u32 flags;
	int exit_state;
	struct task_struct *real_parent;
	__u32 pdeath_signal;
	__u32 personality;
	unsigned long atomic_flags;
	__u64 start_time;
	__u64 self_exec_id;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	void *clear_child_tid;
	const struct cred *real_cred;
	char comm[16];
	struct fs_struct *fs;
	struct files_struct *files;
	struct mm_struct *mm;
	struct signal_struct *signal;
	struct sighand_struct *sighand;
	unsigned long sas_ss_sp;
	unsigned long sas_ss_size;
	unsigned int sas_ss_flags;
	__u64 timer_slack_ns;
};

struct seq_file;

struct pt_regs {
	unsigned long orig_ax;
};

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

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#endif
