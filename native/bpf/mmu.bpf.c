// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Reads what KVM has built for a virtual machine of the calling process, in the kernel's own memory. Nothing is attached:
 * the programs are run one at a time (BPF_PROG_RUN), and answer in a map's value. Where fields lie is settled when the program is
 * loaded, from the running kernel's BTF. They take no lock: who wants one moment's picture lets no vCPU run meanwhile.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "exchange.h"

#define relocated __attribute__((preserve_access_index))

/* ---- the kernel's structures, as far as they are read (arch/x86/include/asm/kvm_host.h, arch/x86/kvm/mmu/mmu_internal.h) */

struct file {
	void *private_data;
} relocated;
struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} relocated;
struct files_struct {
	struct fdtable *fdt;
} relocated;
struct task_struct {
	struct files_struct *files;
} relocated;

struct list_head {
	struct list_head *next;
} relocated;
struct hlist_node {
	struct hlist_node *next;
} relocated;
struct hlist_head {
	struct hlist_node *first;
} relocated;
typedef struct {
	long long counter;
} relocated atomic64_t;
typedef struct {
	int counter;
} relocated atomic_t;

union kvm_mmu_page_role {
	__u32 word;
} relocated;
union kvm_mmu_extended_role {
	__u32 word;
} relocated;
union kvm_cpu_role {
	struct {
		union kvm_mmu_page_role base;
		union kvm_mmu_extended_role ext;
	};
} relocated;

struct kvm_mmu_page {
	struct list_head link;
	bool tdp_mmu_page;
	bool unsync;
	__u8 mmu_valid_gen;
	bool nx_huge_page_disallowed;
	union kvm_mmu_page_role role;
	__u64 gfn;
	__u64 *spt;
	int root_count;
	unsigned int unsync_children;
	atomic_t write_flooding_count;
	void *ptep;
} relocated;
/* Before Linux 6.2. */
struct kvm_mmu_page___old {
	bool lpage_disallowed;
} relocated;

struct kvm_mmu_root_info {
	__u64 pgd;
	__u64 hpa;
} relocated;
struct kvm_mmu {
	struct kvm_mmu_root_info root;
	__u64 mirror_root_hpa;
	union kvm_cpu_role cpu_role;
	union kvm_mmu_page_role root_role;
	struct kvm_mmu_root_info prev_roots[PREVIOUS_ROOTS];
	__u64 *pae_root;
} relocated;

struct kvm_vcpu_arch {
	struct kvm_mmu *mmu;
	struct kvm_mmu root_mmu;
	struct kvm_mmu guest_mmu;
	struct kvm_mmu nested_mmu;
	struct kvm_mmu *walk_mmu;
} relocated;
struct kvm_vcpu {
	struct kvm_vcpu_arch arch;
} relocated;

struct kvm_memory_slot {
	struct hlist_node id_node[2];
	__u64 base_gfn;
	unsigned long npages;
	unsigned long userspace_addr;
	__u32 flags;
	short id;
	__u16 as_id;
} relocated;
struct kvm_memslots {
	__u64 generation;
	struct hlist_head id_hash[128];
	int node_idx;
} relocated;

struct kvm_arch {
	unsigned long n_used_mmu_pages;
	unsigned int indirect_shadow_pages;
	__u8 mmu_valid_gen;
	struct list_head active_mmu_pages;
	struct list_head tdp_mmu_roots;
	atomic64_t tdp_mmu_pages;
} relocated;
struct kvm {
	struct kvm_memslots *memslots[1];
	struct kvm_arch arch;
	unsigned long mmu_invalidate_seq;
	long mmu_invalidate_in_progress;
	__u64 mmu_invalidate_range_start;
	__u64 mmu_invalidate_range_end;
} relocated;
/* Before Linux 6.1. */
struct kvm___old {
	unsigned long mmu_notifier_seq;
	long mmu_notifier_count;
} relocated;

struct page {
	unsigned long private;
} relocated;

/* ---- */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct exchange);
} exchange_map SEC(".maps");

static struct exchange *exchange(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&exchange_map, &zero);
}

/* What a descriptor of the calling process stands for. */
static void *object_of(__u64 fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files, *file = NULL;
	if (!table || fd >= BPF_CORE_READ(table, max_fds))
		return NULL;
	files = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), files + fd);
	return file ? BPF_CORE_READ(file, private_data) : NULL;
}

SEC("syscall")
int read_vm(void *unused)
{
	struct exchange *x = exchange();
	struct kvm *kvm;
	if (!x)
		return 0;
	kvm = object_of(x->fd);
	if (!kvm) {
		x->problem = NO_FILE;
		return 0;
	}
	if (!bpf_core_field_exists(kvm->arch.active_mmu_pages)) {
		x->problem = UNKNOWN_KERNEL;
		return 0;
	}
	x->problem = EXCHANGE_GOOD;
	if (bpf_core_field_exists(kvm->mmu_invalidate_seq)) {
		x->vm.mmu_invalidate_seq = BPF_CORE_READ(kvm, mmu_invalidate_seq);
		x->vm.mmu_invalidate_in_progress = BPF_CORE_READ(kvm, mmu_invalidate_in_progress);
	} else {
		struct kvm___old *old = (void *)kvm;
		x->vm.mmu_invalidate_seq = BPF_CORE_READ(old, mmu_notifier_seq);
		x->vm.mmu_invalidate_in_progress = BPF_CORE_READ(old, mmu_notifier_count);
	}
	x->vm.invalidate_start = bpf_core_field_exists(kvm->mmu_invalidate_range_start) ? BPF_CORE_READ(kvm, mmu_invalidate_range_start) : 0;
	x->vm.invalidate_end = bpf_core_field_exists(kvm->mmu_invalidate_range_end) ? BPF_CORE_READ(kvm, mmu_invalidate_range_end) : 0;
	x->vm.used_pages = BPF_CORE_READ(kvm, arch.n_used_mmu_pages);
	x->vm.indirect_pages = BPF_CORE_READ(kvm, arch.indirect_shadow_pages);
	x->vm.tdp_pages = 0;
	if (bpf_core_field_exists(kvm->arch.tdp_mmu_pages) && bpf_core_field_size(kvm->arch.tdp_mmu_pages) == 8)
		x->vm.tdp_pages = BPF_CORE_READ(kvm, arch.tdp_mmu_pages.counter);
	x->vm.valid_gen = BPF_CORE_READ(kvm, arch.mmu_valid_gen);
	x->vm.slots_generation = BPF_CORE_READ(kvm, memslots[0], generation);
	x->vm.active_pages = (__u64)kvm + bpf_core_field_offset(kvm->arch) + bpf_core_field_offset(struct kvm_arch, active_mmu_pages);
	x->vm.tdp_roots = 0;
	if (bpf_core_field_exists(kvm->arch.tdp_mmu_roots))
		x->vm.tdp_roots = (__u64)kvm + bpf_core_field_offset(kvm->arch) + bpf_core_field_offset(struct kvm_arch, tdp_mmu_roots);
	return 0;
}

static __always_inline void read_mmu(struct mmu_state *state, struct kvm_mmu *mmu)
{
	__u64 *pae = BPF_CORE_READ(mmu, pae_root);
	state->address = (__u64)mmu;
	state->root.hpa = BPF_CORE_READ(mmu, root.hpa);
	state->root.pgd = BPF_CORE_READ(mmu, root.pgd);
	for (int i = 0; i < PREVIOUS_ROOTS; i++) {
		struct kvm_mmu_root_info *root = (void *)mmu + bpf_core_field_offset(mmu->prev_roots) +
						 i * bpf_core_type_size(struct kvm_mmu_root_info);
		state->previous[i].hpa = BPF_CORE_READ(root, hpa);
		state->previous[i].pgd = BPF_CORE_READ(root, pgd);
	}
	state->mirror_root = bpf_core_field_exists(mmu->mirror_root_hpa) ? BPF_CORE_READ(mmu, mirror_root_hpa) : 0;
	state->root_role = BPF_CORE_READ(mmu, root_role.word);
	state->cpu_base = BPF_CORE_READ(mmu, cpu_role.base.word);
	state->cpu_ext = BPF_CORE_READ(mmu, cpu_role.ext.word);
	state->pae_root = (__u64)pae;
	bpf_probe_read_kernel(state->pae, sizeof(state->pae), pae);
}

SEC("syscall")
int read_vcpu(void *unused)
{
	struct exchange *x = exchange();
	struct kvm_vcpu *vcpu;
	if (!x)
		return 0;
	vcpu = object_of(x->fd);
	if (!vcpu) {
		x->problem = NO_FILE;
		return 0;
	}
	if (!bpf_core_field_exists(struct kvm_mmu, root) || !bpf_core_field_exists(struct kvm_mmu, cpu_role)) {
		x->problem = UNKNOWN_KERNEL;
		return 0;
	}
	x->problem = EXCHANGE_GOOD;
	x->vcpu.active = (__u64)BPF_CORE_READ(vcpu, arch.mmu);
	x->vcpu.walk = (__u64)BPF_CORE_READ(vcpu, arch.walk_mmu);
	void *arch = (void *)vcpu + bpf_core_field_offset(vcpu->arch);
	read_mmu(&x->vcpu.mmus[0], arch + bpf_core_field_offset(struct kvm_vcpu_arch, root_mmu));
	read_mmu(&x->vcpu.mmus[1], arch + bpf_core_field_offset(struct kvm_vcpu_arch, guest_mmu));
	read_mmu(&x->vcpu.mmus[2], arch + bpf_core_field_offset(struct kvm_vcpu_arch, nested_mmu));
	return 0;
}

static __always_inline void read_page(struct page_state *state, struct kvm_mmu_page *page)
{
	state->address = (__u64)page;
	state->table = (__u64)BPF_CORE_READ(page, spt);
	state->gfn = BPF_CORE_READ(page, gfn);
	state->parents = (__u64)BPF_CORE_READ(page, ptep);
	state->role = BPF_CORE_READ(page, role.word);
	state->root_count = BPF_CORE_READ(page, root_count);
	state->unsync_children = BPF_CORE_READ(page, unsync_children);
	state->write_flooding = BPF_CORE_READ(page, write_flooding_count.counter);
	state->is_tdp = BPF_CORE_READ(page, tdp_mmu_page);
	state->unsync = BPF_CORE_READ(page, unsync);
	state->valid_gen = BPF_CORE_READ(page, mmu_valid_gen);
	if (bpf_core_field_exists(page->nx_huge_page_disallowed))
		state->nx_disallowed = BPF_CORE_READ(page, nx_huge_page_disallowed);
	else {
		struct kvm_mmu_page___old *old = (void *)page;
		state->nx_disallowed = BPF_CORE_READ(old, lpage_disallowed);
	}
}

/* Pages of a list behind `cursor`, up to its head at `end`; `cursor` is then the last that was read. */
SEC("syscall")
int read_pages(void *unused)
{
	struct exchange *x = exchange();
	if (!x)
		return 0;
	struct list_head *at = (void *)x->cursor;
	__u32 count = 0;
	x->problem = EXCHANGE_GOOD;
	for (int i = 0; i < PAGES_MOST; i++) {
		struct list_head *next = NULL;
		if (bpf_probe_read_kernel(&next, sizeof(next), &at->next)) {
			x->problem = NOT_READ;
			break;
		}
		/* Without a TDP MMU the head of its roots is all zeros. */
		if (!next || (__u64)next == x->end)
			break;
		at = next;
		read_page(&x->pages[i], (void *)at - bpf_core_field_offset(struct kvm_mmu_page, link));
		count = i + 1;
	}
	x->cursor = (__u64)at;
	x->count = count;
	return 0;
}

/* The kvm_mmu_pages of the struct pages at `addresses`, if each has one: the caller knows by its table. */
SEC("syscall")
int read_pages_of(void *unused)
{
	struct exchange *x = exchange();
	if (!x)
		return 0;
	x->problem = EXCHANGE_GOOD;
	for (int i = 0; i < TABLES_MOST; i++) {
		if (i >= x->count)
			break;
		struct page *page = (void *)x->addresses[i];
		struct kvm_mmu_page *of = (void *)BPF_CORE_READ(page, private);
		x->pages[i].table = 0;
		if (of)
			read_page(&x->pages[i], of);
	}
	return 0;
}

/* Where kernels that randomize their memory have the struct pages (arch/x86/mm/kaslr.c). */
extern const void vmemmap_base __ksym __weak;

/* Bytes of a struct page, in `cursor`; where they begin, in `end`, 0 where this kernel has it at the usual place. */
SEC("syscall")
int read_page_structs(void *unused)
{
	struct exchange *x = exchange();
	if (!x)
		return 0;
	x->problem = EXCHANGE_GOOD;
	x->cursor = bpf_core_type_size(struct page);
	x->end = 0;
	if (&vmemmap_base)
		bpf_probe_read_kernel(&x->end, sizeof(x->end), &vmemmap_base);
	return 0;
}

/* Entries of the tables at `addresses`. */
SEC("syscall")
int read_tables(void *unused)
{
	struct exchange *x = exchange();
	if (!x)
		return 0;
	x->problem = EXCHANGE_GOOD;
	for (int i = 0; i < TABLES_MOST; i++) {
		if (i >= x->count)
			break;
		if (bpf_probe_read_kernel(x->tables[i], sizeof(x->tables[i]), (void *)x->addresses[i])) {
			x->problem = NOT_READ;
			break;
		}
	}
	return 0;
}

/* Slots of the hash bucket `cursor`. */
SEC("syscall")
int read_slots(void *unused)
{
	struct exchange *x = exchange();
	if (!x)
		return 0;
	struct kvm *kvm = object_of(x->fd);
	__u32 count = 0;
	if (!kvm || x->cursor >= SLOT_BUCKETS) {
		x->problem = NO_FILE;
		return 0;
	}
	if (!bpf_core_field_exists(struct kvm_memslots, id_hash)) {
		x->problem = UNKNOWN_KERNEL;
		return 0;
	}
	x->problem = EXCHANGE_GOOD;
	struct kvm_memslots *slots = BPF_CORE_READ(kvm, memslots[0]);
	int node = BPF_CORE_READ(slots, node_idx) & 1;
	int offset = bpf_core_field_offset(struct kvm_memory_slot, id_node) + node * bpf_core_type_size(struct hlist_node);
	struct hlist_node *at = NULL;
	bpf_probe_read_kernel(&at, sizeof(at),
			      (void *)slots + bpf_core_field_offset(slots->id_hash) + x->cursor * bpf_core_type_size(struct hlist_head));
	for (int i = 0; i < SLOTS_MOST && at; i++) {
		struct kvm_memory_slot *slot = (void *)at - offset;
		struct slot_state *state = &x->slots[i];
		state->gfn = BPF_CORE_READ(slot, base_gfn);
		state->pages = BPF_CORE_READ(slot, npages);
		state->userspace = BPF_CORE_READ(slot, userspace_addr);
		state->flags = BPF_CORE_READ(slot, flags);
		state->id = (__u16)BPF_CORE_READ(slot, id);
		state->as_id = BPF_CORE_READ(slot, as_id);
		count = i + 1;
		at = BPF_CORE_READ(at, next);
	}
	x->count = count;
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
