/* SPDX-License-Identifier: MIT */
/* What mmu.bpf.c and its user hand to each other: one value of a map, seen by both. */
#ifndef EXCHANGE_H
#define EXCHANGE_H

typedef unsigned char exchange_u8;
typedef unsigned int exchange_u32;
typedef unsigned long long exchange_u64;

/* Records of one call. */
#define PAGES_MOST 64
/* Of one bucket of the hash of slots. */
#define SLOTS_MOST 16
#define SLOT_BUCKETS 128
#define TABLES_MOST 16
#define ENTRIES 512
#define PREVIOUS_ROOTS 3
#define MMUS 3

/* Problems of a call. */
enum exchange_problem { EXCHANGE_GOOD, NO_FILE, NOT_READ, UNKNOWN_KERNEL };

struct vm_state {
	exchange_u64 mmu_invalidate_seq;
	exchange_u64 mmu_invalidate_in_progress;
	exchange_u64 invalidate_start, invalidate_end;
	exchange_u64 used_pages, indirect_pages, tdp_pages;
	exchange_u64 slots_generation;
	/* Heads of lists, as addresses of the kernel. */
	exchange_u64 active_pages, tdp_roots;
	exchange_u32 valid_gen;
};

struct root_state {
	exchange_u64 hpa, pgd;
};

struct mmu_state {
	exchange_u64 address;
	struct root_state root, previous[PREVIOUS_ROOTS];
	exchange_u64 mirror_root;
	/* The four roots of a PAE root; where it is. */
	exchange_u64 pae_root, pae[4];
	exchange_u32 root_role, cpu_base, cpu_ext;
};

struct vcpu_state {
	/* Addresses of the active MMU and of the one that translates the guest's addresses. */
	exchange_u64 active, walk;
	/* root_mmu, guest_mmu, nested_mmu */
	struct mmu_state mmus[MMUS];
};

struct page_state {
	/* Of the kvm_mmu_page, and of its table. */
	exchange_u64 address, table;
	exchange_u64 gfn;
	exchange_u64 parents;
	exchange_u32 role;
	exchange_u32 root_count, unsync_children, write_flooding;
	exchange_u8 is_tdp, unsync, valid_gen, nx_disallowed;
};

struct slot_state {
	exchange_u64 gfn, pages, userspace;
	exchange_u32 flags, id, as_id;
};

struct exchange {
	/* In: a file descriptor of the caller, the address to go on at, the end of a list. */
	exchange_u64 fd, cursor, end;
	/* In and out: how many. */
	exchange_u32 count;
	/* Out: a problem. */
	exchange_u32 problem;
	/* In, of read_tables and read_pages_of: addresses. */
	exchange_u64 addresses[TABLES_MOST];
	union {
		struct vm_state vm;
		struct vcpu_state vcpu;
		struct page_state pages[PAGES_MOST];
		struct slot_state slots[SLOTS_MOST];
		exchange_u64 tables[TABLES_MOST][ENTRIES];
	};
};

#endif
