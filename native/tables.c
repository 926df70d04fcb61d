/* SPDX-License-Identifier: MIT */
/*
 * What KVM has built for this machine: its kvm_mmu_pages with their entries, each vCPU's MMUs and roots, slots. Read in the
 * kernel's own memory by bpf/mmu.bpf.c, which is part of this file's object. Without libbpf when the helper is built, all that is
 * left is tables_lacks.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "helper.h"

#ifndef WITH_BPF

const char *tables_lacks(void)
{
	return "this helper was built without libbpf: install clang and libbpf-dev, and build it again";
}

int tables_json(struct vm *vm, struct text *json)
{
	(void)vm;
	(void)json;
	return fail(ENOSYS, "%s", tables_lacks());
}

#else

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

#include "bpf/exchange.h"
#include "server.h"

/* The program as clang made it. */
__asm__(".section .rodata\n"
	".balign 16\n"
	"bpf_object_start: .incbin \"" BPF_OBJECT "\"\n"
	"bpf_object_end: .byte 0\n"
	".previous\n");
extern const char bpf_object_start[], bpf_object_end[];

/* SPTE_MMU_PRESENT_MASK and the bit of a large page (arch/x86/kvm/mmu/spte.h). */
#define SPTE_PRESENT (1ULL << 11)
#define SPTE_LARGE (1ULL << 7)
#define SPTE_FRAME 0xffffffffff000ULL
/* The kernel's mapping of all memory begins at a multiple of this, randomized or not (arch/x86/mm/kaslr.c). */
#define DIRECT_MAP_UNIT (1ULL << 30)
/* Tables that are told at most: a machine of 512 GiB in 4K pages has 262,000. */
#define TABLES_TOLD 65536
#define LEVEL_BITS 15

enum program { READ_VM, READ_VCPU, READ_PAGES, READ_PAGES_OF, READ_PAGE_STRUCTS, READ_TABLES, READ_SLOTS, PROGRAMS };
static const char *const program_names[PROGRAMS] = {
	"read_vm", "read_vcpu", "read_pages", "read_pages_of", "read_page_structs", "read_tables", "read_slots",
};

static struct {
	struct bpf_object *object;
	int programs[PROGRAMS];
	struct exchange *exchange;
	/* The kernel's address of physical address 0; 0 while it is not known. */
	u64 direct_map;
	/* Where struct pages are, and how long each is; 0 where they are not to be found. */
	u64 page_structs, page_struct_size;
	bool tried;
	/* Why it could not be loaded. */
	char lacks[256];
} bpf;

static int quiet(enum libbpf_print_level level, const char *format, va_list arguments)
{
	char line[200];
	vsnprintf(line, sizeof(line), format, arguments);
	/* The first complaint says what is wrong; those after it follow from it. */
	if (level == LIBBPF_WARN && !bpf.lacks[0]) {
		line[strcspn(line, "\n")] = 0;
		snprintf(bpf.lacks, sizeof(bpf.lacks), "the BPF program does not load: %s", line);
	}
	return 0;
}

static bool load(void)
{
	if (bpf.tried)
		return bpf.object;
	bpf.tried = true;
	libbpf_set_print(quiet);
	struct bpf_object *object = bpf_object__open_mem(bpf_object_start, (size_t)(bpf_object_end - bpf_object_start), NULL);
	int error = object ? bpf_object__load(object) : -errno;
	if (error) {
		if (error == -EPERM)
			snprintf(bpf.lacks, sizeof(bpf.lacks), "no permission to load BPF programs: CAP_BPF and CAP_PERFMON are needed");
		else if (!bpf.lacks[0])
			snprintf(bpf.lacks, sizeof(bpf.lacks), "the BPF program does not load: %s", strerror(-error));
		bpf_object__close(object);
		return false;
	}
	for (int i = 0; i < PROGRAMS; i++)
		bpf.programs[i] = bpf_program__fd(bpf_object__find_program_by_name(object, program_names[i]));
	size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (sizeof(struct exchange) + page - 1) / page * page;
	int map = bpf_object__find_map_fd_by_name(object, "exchange_map");
	bpf.exchange = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0);
	if (bpf.exchange == MAP_FAILED) {
		snprintf(bpf.lacks, sizeof(bpf.lacks), "the BPF program's map cannot be mapped: %s", strerror(errno));
		bpf_object__close(object);
		return false;
	}
	bpf.lacks[0] = 0;
	bpf.object = object;
	return true;
}

/* Loading takes a while, in a lab seconds: until somebody asks for tables, only what costs nothing is looked at. */
const char *tables_lacks(void)
{
	if (!bpf.tried && access("/sys/kernel/btf/vmlinux", R_OK))
		return "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF): where its structures have what is not known";
	return bpf.lacks;
}

static int run(enum program program)
{
	LIBBPF_OPTS(bpf_test_run_opts, options);
	int error = bpf_prog_test_run_opts(bpf.programs[program], &options);
	if (error)
		return fail(-error, "%s does not run: %s", program_names[program], strerror(-error));
	switch (bpf.exchange->problem) {
	case EXCHANGE_GOOD:
		return 0;
	case UNKNOWN_KERNEL:
		return fail(ENOTSUP, "this kernel's KVM lacks what %s reads: it is older than Linux 5.19, or much newer", program_names[program]);
	default:
		return fail(EFAULT, "%s could not read the kernel's memory: the tables have changed meanwhile", program_names[program]);
	}
}

/* ---- pages */

struct found {
	struct page_state *pages;
	u64 *entries;
	size_t count, room;
	/* There were more than are told. */
	bool cut;
};

static bool keep(struct found *found, const struct page_state *page)
{
	if (found->count == TABLES_TOLD) {
		found->cut = true;
		return false;
	}
	if (found->count == found->room) {
		size_t room = found->room ? 2 * found->room : 64;
		struct page_state *pages = realloc(found->pages, room * sizeof(*pages));
		if (!pages)
			return false;
		found->pages = pages;
		found->room = room;
	}
	found->pages[found->count++] = *page;
	return true;
}

static int take_list(struct found *found, u64 head)
{
	struct exchange *x = bpf.exchange;
	x->cursor = x->end = head;
	do {
		int error = run(READ_PAGES);
		if (error)
			return error;
		for (u32 i = 0; i < x->count; i++) {
			if (!keep(found, &x->pages[i]))
				return found->cut ? 0 : fail(ENOMEM, "no memory for KVM's tables");
		}
	} while (x->count == PAGES_MOST);
	return 0;
}

/* A root that both a vCPU knows by its physical address and a page by the kernel's. The one that most agree on is it. */
static void learn_direct_map(const struct found *found, const struct vcpu_state *vcpus, int count)
{
	u64 best = 0;
	int most = 0;
	if (bpf.direct_map)
		return;
	for (size_t i = 0; i < found->count; i++) {
		for (int j = 0; j < count * MMUS; j++) {
			const struct mmu_state *mmu = &vcpus[j / MMUS].mmus[j % MMUS];
			u64 base = found->pages[i].table - (mmu->root.hpa & SPTE_FRAME);
			int votes = 0;
			if (mmu->root.hpa == ~0ULL || !mmu->root.hpa || base % DIRECT_MAP_UNIT || base >> 56 != 0xff)
				continue;
			for (size_t k = 0; k < found->count; k++) {
				for (int l = 0; l < count * MMUS; l++) {
					const struct mmu_state *other = &vcpus[l / MMUS].mmus[l % MMUS];
					votes += found->pages[k].table - base == (other->root.hpa & SPTE_FRAME);
				}
			}
			if (votes > most) {
				most = votes;
				best = base;
			}
		}
	}
	/* PAE roots: the register holds the address of four of them, which the MMU knows by the kernel's address too. */
	for (int j = 0; !most && j < count * MMUS; j++) {
		const struct mmu_state *mmu = &vcpus[j / MMUS].mmus[j % MMUS];
		u64 base = mmu->pae_root - (mmu->root.hpa & ~31ULL);
		if (mmu->pae_root && mmu->root.hpa != ~0ULL && mmu->root.hpa && !(base % DIRECT_MAP_UNIT) && base >> 56 == 0xff) {
			best = base;
			most = 1;
		}
	}
	bpf.direct_map = best;
}

/* Tables of the TDP MMU below its roots are on no list: they are found by the entries that point to them. */
static bool is_table(const struct page_state *page, u64 entry)
{
	return page->is_tdp && (page->role & LEVEL_BITS) > 1 && (entry & SPTE_PRESENT) && !(entry & SPTE_LARGE);
}

/* The struct page of a table of the TDP MMU leads to its kvm_mmu_page; where they begin is tried with a root that is known. */
static void learn_page_structs(const struct page_state *root)
{
	/* As the kernel says, else as it is without randomization, of 4 and 5 levels (Documentation/arch/x86/x86_64/mm.rst). */
	struct exchange *x = bpf.exchange;
	if (bpf.page_struct_size || run(READ_PAGE_STRUCTS))
		return;
	const u64 places[] = { x->end, 0xffffea0000000000ULL, 0xffd4000000000000ULL };
	u64 size = x->cursor, frame = (root->table - bpf.direct_map) >> 12;
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		x->addresses[0] = places[i] + frame * size;
		x->count = 1;
		if (places[i] && !run(READ_PAGES_OF) && x->pages[0].table == root->table) {
			bpf.page_structs = places[i];
			bpf.page_struct_size = size;
			return;
		}
	}
}

/* What is known of a table by where it hangs: all that its page says too, save for what counts only there. */
static struct page_state child_of(const struct page_state *parent, int index, u64 entry)
{
	int level = (int)(parent->role & LEVEL_BITS) - 1;
	return (struct page_state){
		.table = bpf.direct_map + (entry & SPTE_FRAME),
		.gfn = parent->gfn + ((u64)index << (9 * level)),
		.role = (parent->role & ~(u32)LEVEL_BITS) | (u32)level,
		.valid_gen = parent->valid_gen,
		.is_tdp = 1,
	};
}

static int read_entries(struct found *found)
{
	struct exchange *x = bpf.exchange;
	for (size_t done = 0; done < found->count;) {
		size_t some = found->count - done < TABLES_MOST ? found->count - done : TABLES_MOST;
		x->count = (u32)some;
		for (size_t i = 0; i < some; i++)
			x->addresses[i] = found->pages[done + i].table;
		int error = run(READ_TABLES);
		if (error)
			return error;
		u64 *entries = realloc(found->entries, (done + some) * sizeof(x->tables[0]));
		if (!entries)
			return fail(ENOMEM, "no memory for KVM's tables");
		found->entries = entries;
		memcpy(entries + done * ENTRIES, x->tables, some * sizeof(x->tables[0]));
		for (size_t i = done; i < done + some; i++) {
			for (int index = 0; index < ENTRIES; index++) {
				u64 entry = entries[i * ENTRIES + (size_t)index];
				if (!is_table(&found->pages[i], entry))
					continue;
				struct page_state child = child_of(&found->pages[i], index, entry);
				if (!keep(found, &child) && !found->cut)
					return fail(ENOMEM, "no memory for KVM's tables");
			}
		}
		done += some;
	}
	return 0;
}

/* Takes the kernel's word for tables that were found by entries, where their pages can be found. */
static void complete_children(struct found *found)
{
	struct exchange *x = bpf.exchange;
	size_t waiting[TABLES_MOST];
	u32 count = 0;
	for (size_t i = 0; i <= found->count; i++) {
		if (count == TABLES_MOST || (i == found->count && count)) {
			x->count = count;
			if (run(READ_PAGES_OF))
				return;
			for (u32 j = 0; j < count; j++) {
				if (x->pages[j].table == found->pages[waiting[j]].table)
					found->pages[waiting[j]] = x->pages[j];
			}
			count = 0;
		}
		if (i < found->count && !found->pages[i].address && bpf.page_struct_size) {
			x->addresses[count] = bpf.page_structs + ((found->pages[i].table - bpf.direct_map) >> 12) * bpf.page_struct_size;
			waiting[count++] = i;
		}
	}
}

/* ---- JSON */

static void hex(struct text *json, const char *name, u64 value)
{
	text_add(json, ",\"%s\":\"0x%llx\"", name, (unsigned long long)value);
}

/* `VALUE*COUNT,VALUE`: neighbours of one value are told once. */
static void entries_json(struct text *json, const u64 *entries)
{
	for (int index = 0, next; index < ENTRIES; index = next) {
		for (next = index + 1; next < ENTRIES && entries[next] == entries[index]; next++)
			;
		text_add(json, "%s%llx", index ? "," : "", (unsigned long long)entries[index]);
		if (next - index > 1)
			text_add(json, "*%d", next - index);
	}
}

static void page_json(struct text *json, const struct page_state *page, const u64 *entries)
{
	text_add(json, "{\"hpa\":\"0x%llx\"", (unsigned long long)(page->table - bpf.direct_map));
	hex(json, "gfn", page->gfn);
	text_add(json, ",\"role\":%u,\"tdp\":%s,\"validGen\":%u", page->role, page->is_tdp ? "true" : "false", page->valid_gen);
	/* A table by its entry alone has no such counts. */
	if (page->address)
		text_add(json, ",\"rootCount\":%u,\"unsync\":%s,\"unsyncChildren\":%u,\"writeFlooding\":%u,\"nxDisallowed\":%s", page->root_count,
			 page->unsync ? "true" : "false", page->unsync_children, page->write_flooding, page->nx_disallowed ? "true" : "false");
	text_add(json, ",\"entries\":\"");
	entries_json(json, entries);
	text_add(json, "\"}");
}

static void root_json(struct text *json, const struct root_state *root)
{
	text_add(json, "{\"hpa\":\"0x%llx\"", (unsigned long long)root->hpa);
	hex(json, "pgd", root->pgd);
	text_add(json, "}");
}

static void mmu_json(struct text *json, const struct mmu_state *mmu)
{
	text_add(json, "{\"root\":");
	root_json(json, &mmu->root);
	text_add(json, ",\"previous\":[");
	for (int i = 0; i < PREVIOUS_ROOTS; i++) {
		text_add(json, i ? "," : "");
		root_json(json, &mmu->previous[i]);
	}
	text_add(json, "],\"rootRole\":%u,\"cpuRole\":[%u,%u]", mmu->root_role, mmu->cpu_base, mmu->cpu_ext);
	if (mmu->mirror_root)
		hex(json, "mirrorRoot", mmu->mirror_root);
	/* Four roots stand behind one. */
	if (bpf.direct_map && mmu->pae_root && mmu->root.hpa == mmu->pae_root - bpf.direct_map) {
		text_add(json, ",\"pae\":[");
		for (int i = 0; i < 4; i++)
			text_add(json, "%s\"0x%llx\"", i ? "," : "", (unsigned long long)mmu->pae[i]);
		text_add(json, "]");
	}
	text_add(json, "}");
}

static void vcpu_json(struct text *json, const struct vcpu_state *vcpu)
{
	static const char *const names[MMUS] = { "root", "guest", "nested" };
	text_add(json, "{");
	for (int i = 0; i < MMUS; i++) {
		if (vcpu->active == vcpu->mmus[i].address)
			text_add(json, "\"active\":\"%s\",", names[i]);
		if (vcpu->walk == vcpu->mmus[i].address)
			text_add(json, "\"walk\":\"%s\",", names[i]);
	}
	for (int i = 0; i < MMUS; i++) {
		text_add(json, "%s\"%s\":", i ? "," : "", names[i]);
		mmu_json(json, &vcpu->mmus[i]);
	}
	text_add(json, "}");
}

static int slots_json(struct vm *vm, struct text *json)
{
	struct exchange *x = bpf.exchange;
	const char *comma = "";
	x->fd = (u64)vm->fd;
	for (u64 bucket = 0; bucket < SLOT_BUCKETS; bucket++) {
		x->cursor = bucket;
		int error = run(READ_SLOTS);
		if (error)
			return error;
		for (u32 i = 0; i < x->count; i++) {
			const struct slot_state *slot = &x->slots[i];
			text_add(json, "%s{\"id\":%u,\"asId\":%u,\"flags\":%u", comma, slot->id, slot->as_id, slot->flags);
			hex(json, "gfn", slot->gfn);
			hex(json, "pages", slot->pages);
			hex(json, "userspace", slot->userspace);
			text_add(json, "}");
			comma = ",";
		}
	}
	return 0;
}

/* Where this kernel has the fields of kvm_mmu_page_role, from its BTF. */
static void role_json(struct text *json)
{
	static const char *const files[] = { "kvm", "vmlinux" };
	struct btf *base = btf__load_vmlinux_btf(), *btf = NULL;
	const char *comma = "";
	int id = -1;
	for (size_t i = 0; i < 2 && id < 0 && base; i++) {
		char path[64];
		snprintf(path, sizeof(path), "/sys/kernel/btf/%s", files[i]);
		btf__free(btf);
		btf = i ? NULL : access(path, R_OK) ? NULL : btf__parse_split(path, base);
		id = btf__find_by_name_kind(btf ? btf : base, "kvm_mmu_page_role", BTF_KIND_UNION);
	}
	const struct btf *of = btf ? btf : base;
	const struct btf_type *type = id < 0 ? NULL : btf__type_by_id(of, (u32)id);
	for (int i = 0; type && i < btf_vlen(type); i++) {
		const struct btf_type *fields = btf__type_by_id(of, btf_members(type)[i].type);
		if (!btf_is_struct(fields))
			continue;
		for (int j = 0; j < btf_vlen(fields); j++) {
			const char *name = btf__name_by_offset(of, btf_members(fields)[j].name_off);
			if (!*name)
				continue;
			text_add(json, "%s\"%s\":[%u,%u]", comma, name, btf_member_bit_offset(fields, (u32)j), btf_member_bitfield_size(fields, (u32)j));
			comma = ",";
		}
	}
	btf__free(btf);
	btf__free(base);
}

static int read_vcpus(struct vm *vm, struct vcpu_state *vcpus)
{
	for (int i = 0; i < vm->vcpu_count; i++) {
		bpf.exchange->fd = (u64)vm->vcpus[i]->fd;
		int error = run(READ_VCPU);
		if (error)
			return error;
		vcpus[i] = bpf.exchange->vcpu;
	}
	return 0;
}

static int read_vm(struct vm *vm, struct vm_state *state)
{
	bpf.exchange->fd = (u64)vm->fd;
	int error = run(READ_VM);
	*state = bpf.exchange->vm;
	return error;
}

int tables_json(struct vm *vm, struct text *json)
{
	static struct vcpu_state vcpus[MAX_VCPUS];
	struct vm_state state, after;
	struct found found = { 0 };
	if (!load())
		return fail(ENOTSUP, "%s", bpf.lacks);
	int error = read_vm(vm, &state);
	if (!error)
		error = read_vcpus(vm, vcpus);
	if (!error)
		error = take_list(&found, state.active_pages);
	if (!error && state.tdp_roots)
		error = take_list(&found, state.tdp_roots);
	learn_direct_map(&found, vcpus, vm->vcpu_count);
	if (!error && found.count && !bpf.direct_map)
		error = fail(EAGAIN, "where the kernel has the tables is not known yet: no vCPU has a root");
	if (!error)
		error = read_entries(&found);
	for (size_t i = 0; !error && i < found.count; i++) {
		if (found.pages[i].is_tdp && found.pages[i].address) {
			learn_page_structs(&found.pages[i]);
			complete_children(&found);
			break;
		}
	}
	if (!error)
		error = read_vm(vm, &after);
	if (!error) {
		text_add(json, "{\"steady\":%s,\"cut\":%s,\"role\":{",
			 !anyone_runs(vm) && !after.mmu_invalidate_in_progress && state.mmu_invalidate_seq == after.mmu_invalidate_seq && state.used_pages == after.used_pages &&
					 state.tdp_pages == after.tdp_pages ?
				 "true" :
				 "false",
			 found.cut ? "true" : "false");
		role_json(json);
		text_add(json, "},\"vm\":{\"invalidateSeq\":%llu,\"invalidateInProgress\":%llu", state.mmu_invalidate_seq,
			 state.mmu_invalidate_in_progress);
		hex(json, "invalidateStart", state.invalidate_start);
		hex(json, "invalidateEnd", state.invalidate_end);
		text_add(json, ",\"usedPages\":%llu,\"indirectPages\":%llu,\"tdpPages\":%llu,\"validGen\":%u", state.used_pages, state.indirect_pages,
			 state.tdp_pages, state.valid_gen);
		hex(json, "slotsGeneration", state.slots_generation);
		text_add(json, "},\"vcpus\":[");
		for (int i = 0; i < vm->vcpu_count; i++) {
			text_add(json, i ? "," : "");
			vcpu_json(json, &vcpus[i]);
		}
		text_add(json, "],\"pages\":[");
		for (size_t i = 0; i < found.count; i++) {
			text_add(json, i ? "," : "");
			page_json(json, &found.pages[i], found.entries + i * ENTRIES);
		}
		text_add(json, "],\"slots\":[");
		error = slots_json(vm, json);
		text_add(json, "]}");
	}
	free(found.pages);
	free(found.entries);
	return error;
}

#endif
