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

#endif
