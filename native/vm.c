/* SPDX-License-Identifier: MIT */
/* The virtual machine: its memory slots, and what the host can do. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "events.h"
#include "helper.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* Slots begin at multiples of a large page in the memfd, so that the host may use large pages behind them. */
#define SLOT_ALIGN (2ULL << 20)

char why[512];

int fail(int error, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(why, sizeof(why), format, arguments);
	va_end(arguments);
	return -error;
}

static int check(struct vm *vm, int capability)
{
	int found = ioctl(vm->fd >= 0 ? vm->fd : vm->kvm, KVM_CHECK_EXTENSION, capability);
	return found > 0 ? found : 0;
}

/* ---- capabilities */

const char *const capability_names[] = {
	"userfaultfd", "userfaultfd-minor", "userfaultfd-wp", "read-only",	   "dirty-manual", "dirty-ring",
	"statistics",  "guest-memfd",	    "memory-attributes", "pre-fault", "memory-fault", "violations", "events",	   "tables",	   "svm",	NULL,
};

static const char *uffd_words(int error)
{
	switch (-error) {
	case EPERM:
	case EACCES:
		return "userfaultfd is not permitted: run as root, give access to /dev/userfaultfd, or set the sysctl vm.unprivileged_userfaultfd to 1";
	case ENOSYS:
	case ENOENT:
		return "this kernel has no userfaultfd";
	default:
		return "userfaultfd cannot be opened";
	}
}

const char *vm_lacks(struct vm *vm, const char *name)
{
	static const struct {
		const char *name;
		int capability;
		const char *words;
	} simple[] = {
		{ "read-only", KVM_CAP_READONLY_MEM, "this kernel has no KVM_CAP_READONLY_MEM" },
		{ "dirty-manual", KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		  "this kernel has no KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2" },
		{ "dirty-ring", KVM_CAP_DIRTY_LOG_RING, "this kernel has no KVM_CAP_DIRTY_LOG_RING" },
		{ "statistics", KVM_CAP_BINARY_STATS_FD, "this kernel has no KVM_CAP_BINARY_STATS_FD (Linux 5.14)" },
		{ "guest-memfd", KVM_CAP_GUEST_MEMFD, "this kernel has no KVM_CAP_GUEST_MEMFD for such a VM (Linux 6.8)" },
		{ "memory-attributes", KVM_CAP_MEMORY_ATTRIBUTES,
		  "this kernel has no KVM_CAP_MEMORY_ATTRIBUTES for such a VM (Linux 6.8, and a VM type with private memory)" },
		{ "pre-fault", KVM_CAP_PRE_FAULT_MEMORY,
		  "this kernel has no KVM_CAP_PRE_FAULT_MEMORY (Linux 6.11, with EPT or NPT)" },
		{ "memory-fault", KVM_CAP_MEMORY_FAULT_INFO, "this kernel has no KVM_CAP_MEMORY_FAULT_INFO (Linux 6.8)" },
	};
	for (size_t i = 0; i < sizeof(simple) / sizeof(simple[0]); i++) {
		if (!strcmp(simple[i].name, name))
			return check(vm, simple[i].capability) ? "" : simple[i].words;
	}
	/* Asked anew each time: tracefs may have been mounted since. */
	if (!strcmp(name, "violations"))
		return trace_lacks();
	if (!strcmp(name, "events"))
		return events_lacks();
	if (!strcmp(name, "tables"))
		return tables_lacks();
	if (!strcmp(name, "svm"))
		return vm->svm ? "" : "this KVM offers its guests no SVM with nested paging (kvm_amd with nested=1 and npt=1)";
	static bool minor, write_protect;
	static int error = 1;
	if (error == 1)
		error = uffd_open(&minor, &write_protect);
	if (error < 0)
		return uffd_words(error);
	if (!strcmp(name, "userfaultfd-minor") && !minor)
		return "this kernel's userfaultfd has no minor faults for shared memory (Linux 5.14)";
	if (!strcmp(name, "userfaultfd-wp") && !write_protect)
		return "this kernel's userfaultfd cannot write-protect shared memory (Linux 5.19)";
	return "";
}

/* Why this KVM makes no software-protected VM. */
static const char *no_protected_vm(const struct vm *vm)
{
	if (ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_MEMORY_ATTRIBUTES) <= 0)
		return "KVM makes no software-protected VM: this kernel has no private memory (KVM_SET_MEMORY_ATTRIBUTES answers ENOTTY; Linux 6.8 with CONFIG_KVM_SW_PROTECTED_VM)";
	return "KVM makes no software-protected VM: this kernel was built without CONFIG_KVM_SW_PROTECTED_VM, or does not use the TDP MMU";
}

/* How KVM translates guest-physical addresses, as its modules say. */
static const char *second_stage(bool *emulates)
{
	static const struct {
		const char *path;
		const char *kind;
	} parameters[] = {
		{ "/sys/module/kvm_intel/parameters/ept", "ept" },
		{ "/sys/module/kvm_amd/parameters/npt", "npt" },
	};
	*emulates = true;
	for (size_t i = 0; i < 2; i++) {
		char value = 0;
		int fd = open(parameters[i].path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		*emulates = false;
		ssize_t got = read(fd, &value, 1);
		close(fd);
		if (got == 1 && (value == 'Y' || value == '1'))
			return parameters[i].kind;
	}
	return "shadow";
}

bool vm_is_shadow(const struct vm *vm)
{
	return !strcmp(vm->second_stage, "shadow");
}

/* ---- slots */

struct slot *vm_slot(struct vm *vm, u32 id)
{
	for (int i = 0; i < MAX_SLOTS; i++) {
		if (vm->slots[i].used && vm->slots[i].id == id)
			return &vm->slots[i];
	}
	return NULL;
}

struct slot *vm_slot_at(struct vm *vm, u64 gpa)
{
	for (int i = 0; i < MAX_SLOTS; i++) {
		struct slot *slot = &vm->slots[i];
		if (slot->used && gpa >= slot->gpa && gpa - slot->gpa < slot->size)
			return slot;
	}
	return NULL;
}

static int slot_ioctl(struct vm *vm, const struct slot *slot, u64 size)
{
	if (slot->flags & KVM_MEM_GUEST_MEMFD) {
		struct kvm_userspace_memory_region2 region = {
			.slot = slot->id,
			.flags = slot->flags,
			.guest_phys_addr = slot->gpa,
			.memory_size = size,
			.userspace_addr = (u64)(uintptr_t)slot->host,
			.guest_memfd = (u32)slot->private_fd,
		};
		return ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION2, &region) ? -errno : 0;
	}
	struct kvm_userspace_memory_region region = {
		.slot = slot->id,
		.flags = slot->flags,
		.guest_phys_addr = slot->gpa,
		.memory_size = size,
		.userspace_addr = (u64)(uintptr_t)slot->host,
	};
	return ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region) ? -errno : 0;
}

static int change_slot(struct vm *vm, const struct slot *slot, u64 size)
{
	/* KVM's ioctl waits for vCPUs inside KVM_RUN; one that userfaultfd holds there would never leave. */
	bool armed = false;
	for (int i = 0; i < MAX_SLOTS; i++)
		armed |= vm->slots[i].armed != NULL;
	if (armed)
		vm_quiesce(vm);
	int error = slot_ioctl(vm, slot, size);
	if (armed)
		vm_unquiesce(vm);
	return error;
}

static int check_range(struct vm *vm, u32 id, u64 gpa, u64 size)
{
	if (!size || (gpa | size) % PAGE)
		return fail(EINVAL, "slot %u: gpa 0x%llx and size 0x%llx must be multiples of 4K, the size not 0", id,
			    (unsigned long long)gpa, (unsigned long long)size);
	if (gpa + size < gpa || (vm->max_phys_addr < 64 && (gpa + size - 1) >> vm->max_phys_addr))
		return fail(EINVAL, "slot %u: 0x%llx + 0x%llx lies beyond the %d physical address bits of this host", id,
			    (unsigned long long)gpa, (unsigned long long)size, vm->max_phys_addr);
	for (int i = 0; i < MAX_SLOTS; i++) {
		const struct slot *other = &vm->slots[i];
		if (other->used && other->id != id && gpa < other->gpa + other->size && other->gpa < gpa + size)
			return fail(EEXIST, "slot %u: 0x%llx + 0x%llx overlaps slot %u at 0x%llx + 0x%llx", id,
				    (unsigned long long)gpa, (unsigned long long)size, other->id,
				    (unsigned long long)other->gpa, (unsigned long long)other->size);
	}
	return 0;
}

static void slot_forget(struct slot *slot)
{
	if (slot->host && slot->host != MAP_FAILED)
		munmap(slot->host, slot->size);
	if (slot->view && slot->view != MAP_FAILED)
		munmap(slot->view, slot->size);
	if (slot->private_fd >= 0)
		close(slot->private_fd);
	free(slot->armed);
	free(slot->kept_log);
	*slot = (struct slot){ .private_fd = -1 };
}

int vm_slot_add(struct vm *vm, u32 id, u64 gpa, u64 size, u32 flags)
{
	if (vm_slot(vm, id))
		return fail(EEXIST, "slot %u exists already: delete it first", id);
	int error = check_range(vm, id, gpa, size);
	if (error)
		return error;
	const char *lacks = flags & KVM_MEM_READONLY	? vm_lacks(vm, "read-only") :
			    flags & KVM_MEM_GUEST_MEMFD ? vm_lacks(vm, "guest-memfd") :
							  "";
	if (*lacks)
		return fail(EOPNOTSUPP, "%s", lacks);
	struct slot *slot = NULL;
	for (int i = 0; i < MAX_SLOTS && !slot; i++) {
		if (!vm->slots[i].used)
			slot = &vm->slots[i];
	}
	if (!slot)
		return fail(ENOSPC, "slot %u: this helper keeps at most %d slots", id, MAX_SLOTS);
	u64 offset = (vm->memfd_size + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
	if (ftruncate(vm->memfd, (off_t)(offset + size)))
		return fail(errno, "slot %u: the host gives no memory for 0x%llx bytes: %s", id,
			    (unsigned long long)size, strerror(errno));
	vm->memfd_size = offset + size;
	*slot = (struct slot){ .id = id, .gpa = gpa, .size = size, .offset = offset, .flags = flags, .private_fd = -1 };
	slot->host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->memfd, (off_t)offset);
	slot->view = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->memfd, (off_t)offset);
	if (slot->host == MAP_FAILED || slot->view == MAP_FAILED) {
		error = errno;
		slot_forget(slot);
		return fail(error, "slot %u: 0x%llx bytes cannot be mapped: %s", id, (unsigned long long)size,
			    strerror(error));
	}
	/* A host that has no large pages for shared memory backs it as it does. */
	if (vm->huge) {
		madvise(slot->host, size, MADV_HUGEPAGE);
		madvise(slot->view, size, MADV_HUGEPAGE);
	}
	if (vm->populate && madvise(slot->host, size, MADV_POPULATE_WRITE)) {
		error = errno;
		slot_forget(slot);
		return fail(error, "slot %u: the host does not map 0x%llx bytes at once: %s", id, (unsigned long long)size,
			    strerror(error));
	}
	if (flags & KVM_MEM_GUEST_MEMFD) {
		struct kvm_create_guest_memfd create = { .size = size };
		slot->private_fd = ioctl(vm->fd, KVM_CREATE_GUEST_MEMFD, &create);
		if (slot->private_fd < 0) {
			error = errno;
			slot_forget(slot);
			return fail(error, "slot %u: KVM_CREATE_GUEST_MEMFD: %s", id, strerror(error));
		}
	}
	error = change_slot(vm, slot, size);
	if (error) {
		slot_forget(slot);
		return fail(-error, "slot %u: KVM refuses 0x%llx + 0x%llx: %s", id, (unsigned long long)gpa,
			    (unsigned long long)size, strerror(-error));
	}
	slot->used = true;
	return 0;
}

static struct slot *need_slot(struct vm *vm, u32 id)
{
	struct slot *slot = vm_slot(vm, id);
	if (!slot)
		fail(ENOENT, "there is no slot %u", id);
	return slot;
}

int vm_slot_delete(struct vm *vm, u32 id)
{
	struct slot *slot = need_slot(vm, id);
	if (!slot)
		return -ENOENT;
	int error = change_slot(vm, slot, 0);
	if (error)
		return fail(-error, "slot %u: KVM does not delete it: %s", id, strerror(-error));
	/* Its pages go back to the host; its place in the memfd is not used again. */
	fallocate(vm->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)slot->offset, (off_t)slot->size);
	slot_forget(slot);
	return 0;
}

int vm_slot_move(struct vm *vm, u32 id, u64 gpa)
{
	struct slot *slot = need_slot(vm, id);
	if (!slot)
		return -ENOENT;
	int error = check_range(vm, id, gpa, slot->size);
	if (error)
		return error;
	u64 before = slot->gpa;
	slot->gpa = gpa;
	error = change_slot(vm, slot, slot->size);
	if (!error)
		return 0;
	slot->gpa = before;
	return fail(-error, "slot %u: KVM does not move it to 0x%llx: %s", id, (unsigned long long)gpa,
		    strerror(-error));
}

int vm_slot_flags(struct vm *vm, u32 id, u32 flags)
{
	struct slot *slot = need_slot(vm, id);
	if (!slot)
		return -ENOENT;
	u32 before = slot->flags;
	if ((before ^ flags) & KVM_MEM_GUEST_MEMFD)
		return fail(EINVAL, "slot %u: private memory cannot be given or taken later: delete and add the slot", id);
	int error;
	if ((before ^ flags) & KVM_MEM_READONLY) {
		/* KVM changes this flag only on a new slot. */
		const char *lacks = vm_lacks(vm, "read-only");
		if (*lacks)
			return fail(EOPNOTSUPP, "%s", lacks);
		vm_quiesce(vm);
		error = slot_ioctl(vm, slot, 0);
		bool deleted = !error;
		slot->flags = flags;
		if (!error)
			error = slot_ioctl(vm, slot, slot->size);
		/* Where KVM does not take it so, it gets it back as it was. */
		if (error && deleted) {
			slot->flags = before;
			if (slot_ioctl(vm, slot, slot->size))
				slot_forget(slot);
		}
		vm_unquiesce(vm);
		if (!slot->used)
			return fail(-error, "slot %u: KVM takes it back neither with flags 0x%x nor as it was, it is gone: %s", id,
				    flags, strerror(-error));
	} else {
		slot->flags = flags;
		error = change_slot(vm, slot, slot->size);
	}
	if (!error)
		return 0;
	slot->flags = before;
	return fail(-error, "slot %u: KVM refuses flags 0x%x: %s", id, flags, strerror(-error));
}

int vm_refresh(struct vm *vm)
{
	for (int i = 0; i < MAX_SLOTS; i++) {
		struct slot *slot = &vm->slots[i];
		if (!slot->used)
			continue;
		dirty_keep(vm, slot);
		int error = slot_ioctl(vm, slot, 0);
		if (!error)
			error = slot_ioctl(vm, slot, slot->size);
		if (error)
			return fail(-error, "slot %u: KVM does not take it back: %s", slot->id, strerror(-error));
	}
	return 0;
}

/* The slot that holds a range of whole pages; NULL with words when none does. */
struct slot *vm_slot_of_range(struct vm *vm, u64 gpa, u64 size)
{
	struct slot *slot = vm_slot_at(vm, gpa);
	if (!size || (gpa | size) % PAGE) {
		fail(EINVAL, "0x%llx + 0x%llx: both must be multiples of 4K, the size not 0", (unsigned long long)gpa,
		     (unsigned long long)size);
		return NULL;
	}
	if (!slot || size > slot->gpa + slot->size - gpa) {
		fail(ENOENT, "0x%llx + 0x%llx does not lie in one slot", (unsigned long long)gpa,
		     (unsigned long long)size);
		return NULL;
	}
	return slot;
}

int vm_unmap(struct vm *vm, u64 gpa, u64 size)
{
	const struct slot *slot = vm_slot_of_range(vm, gpa, size);
	if (!slot)
		return -EINVAL;
	/* Shared memory stays in the memfd: what goes is the mapping, and with it what KVM built on it. */
	if (madvise(slot->host + (gpa - slot->gpa), size, MADV_DONTNEED))
		return fail(errno, "the host does not unmap 0x%llx + 0x%llx: %s", (unsigned long long)gpa,
			    (unsigned long long)size, strerror(errno));
	return 0;
}

int vm_migrate(struct vm *vm, u64 gpa, u64 size)
{
	const struct slot *slot = vm_slot_of_range(vm, gpa, size);
	if (!slot)
		return -EINVAL;
	u8 *copy = malloc(size);
	if (!copy)
		return fail(ENOMEM, "no memory to keep 0x%llx bytes meanwhile", (unsigned long long)size);
	u8 *view = slot->view + (gpa - slot->gpa);
	/* Nobody may see the memory while it is nowhere. */
	vm_quiesce(vm);
	memcpy(copy, view, size);
	int error = vm_discard(vm, gpa, size);
	if (!error) {
		memcpy(view, copy, size);
		/* Where pages were mapped the kernel's own migration maps the new ones; before Linux 5.14 the next touch does. */
		madvise(slot->host + (gpa - slot->gpa), size, MADV_POPULATE_WRITE);
	}
	vm_unquiesce(vm);
	free(copy);
	return error;
}

int vm_discard(struct vm *vm, u64 gpa, u64 size)
{
	const struct slot *slot = vm_slot_of_range(vm, gpa, size);
	if (!slot)
		return -EINVAL;
	if (fallocate(vm->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(slot->offset + (gpa - slot->gpa)),
		      (off_t)size))
		return fail(errno, "the host does not take 0x%llx + 0x%llx back: %s", (unsigned long long)gpa,
			    (unsigned long long)size, strerror(errno));
	return 0;
}

/* ---- creation */

static int open_kvm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm >= 0)
		return kvm;
	switch (errno) {
	case ENOENT:
		return fail(ENOENT, "there is no /dev/kvm: load kvm_intel or kvm_amd, or turn virtualization on in the firmware (in a VM: nested virtualization)");
	case EACCES:
		return fail(EACCES, "no permission for /dev/kvm: join the group that owns it (usually kvm), and log in again");
	default:
		return fail(errno, "/dev/kvm cannot be opened: %s", strerror(errno));
	}
}

/* What the guest's CPUID will say of its page tables. */
static void read_cpu(struct vm *vm)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(cpuid->entries[0]));
	bool has_svm = false, has_npt = false;
	vm->max_phys_addr = 36;
	if (!cpuid)
		return;
	cpuid->nent = 256;
	if (!ioctl(vm->kvm, KVM_GET_SUPPORTED_CPUID, cpuid)) {
		for (u32 i = 0; i < cpuid->nent; i++) {
			const struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
			if (entry->function == 0) {
				const u32 name[3] = { entry->ebx, entry->edx, entry->ecx };
				memcpy(vm->cpu_vendor, name, sizeof(name));
			} else if (entry->function == 0x80000001) {
				vm->pages_1g = entry->edx >> 26 & 1;
				has_svm = entry->ecx >> 2 & 1;
			} else if (entry->function == 0x8000000a)
				has_npt = entry->edx & 1;
			else if (entry->function == 0x80000008)
				vm->max_phys_addr = (int)(entry->eax & 0xff);
		}
	}
	vm->svm = has_svm && has_npt;
	free(cpuid);
}

int vm_create(struct vm *vm, const struct vm_options *options)
{
	*vm = (struct vm){ .kvm = -1, .fd = -1, .memfd = -1, .event = -1 };
	for (int i = 0; i < MAX_SLOTS; i++)
		vm->slots[i].private_fd = -1;
	pthread_mutex_init(&vm->lock, NULL);
	pthread_mutex_init(&vm->plant_lock, NULL);
	pthread_cond_init(&vm->changed, NULL);
	vm->kvm = open_kvm();
	if (vm->kvm < 0)
		return vm->kvm;
	int version = ioctl(vm->kvm, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION)
		return fail(EPROTO, "/dev/kvm speaks version %d of KVM's interface; %d is needed", version,
			    KVM_API_VERSION);
	do
		vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, options->software_protected ? KVM_X86_SW_PROTECTED_VM : 0);
	while (vm->fd < 0 && errno == EINTR);
	if (vm->fd < 0 && errno == EINVAL && options->software_protected)
		return fail(EOPNOTSUPP, "%s", no_protected_vm(vm));
	if (vm->fd < 0)
		return fail(errno, "KVM does not make a VM: %s%s", strerror(errno),
			    errno == EBUSY ? " (another hypervisor may be using the processor's virtualization)" : "");
	vm->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	vm->memfd = memfd_create("guest-memory", MFD_CLOEXEC);
	if (vm->memfd < 0 || vm->event < 0)
		return fail(errno, "no memory for the guest: %s", strerror(errno));
	vm->huge = options->huge;
	vm->populate = options->populate;
	vm->run_size = (size_t)ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	read_cpu(vm);
	vm->second_stage = second_stage(&vm->emulates);
	if (options->dirty_ring) {
		const char *lacks = vm_lacks(vm, "dirty-ring");
		struct kvm_enable_cap enable = { .cap = KVM_CAP_DIRTY_LOG_RING,
						 .args = { options->dirty_ring * sizeof(struct kvm_dirty_gfn) } };
		if (*lacks)
			return fail(EOPNOTSUPP, "--dirty-ring: %s", lacks);
		if (ioctl(vm->fd, KVM_ENABLE_CAP, &enable))
			return fail(errno, "--dirty-ring %u: KVM refuses: %s (a power of two is needed, and at most %d)",
				    options->dirty_ring, strerror(errno),
				    check(vm, KVM_CAP_DIRTY_LOG_RING) / (int)sizeof(struct kvm_dirty_gfn));
		vm->dirty_ring = options->dirty_ring;
	}
	if (options->software_protected) {
		/* Where this is not to be had the guest's hypercall tells it. */
		struct kvm_enable_cap enable = { .cap = KVM_CAP_EXIT_HYPERCALL, .args = { 1 << KVM_HC_MAP_GPA_RANGE } };
		ioctl(vm->fd, KVM_ENABLE_CAP, &enable);
	}
	/* What Intel's VMX needs for real mode; of no use, and no harm, elsewhere. */
	ioctl(vm->fd, KVM_SET_TSS_ADDR, 0xfffbd000UL);
	for (int i = 0; i < options->slot_count; i++) {
		int error = vm_slot_add(vm, options->slots[i].id, options->slots[i].gpa, options->slots[i].size,
					options->slots[i].flags);
		if (error)
			return error;
	}
	int most = check(vm, KVM_CAP_MAX_VCPUS);
	if (options->vcpus < 1 || options->vcpus > MAX_VCPUS || (most && options->vcpus > most))
		return fail(EINVAL, "--vcpus %d: from 1 to %d are possible", options->vcpus,
			    most && most < MAX_VCPUS ? most : MAX_VCPUS);
	for (int i = 0; i < options->vcpus; i++) {
		int error = vcpu_create(vm, i);
		if (error)
			return error;
	}
	return 0;
}
