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
};

#endif
