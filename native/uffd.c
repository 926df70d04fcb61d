/* SPDX-License-Identifier: MIT */
/* Second-stage faults by userfaultfd: first touches and first writes of pages that were armed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "helper.h"

/* How long an access may keep its vCPU inside the kernel before it is let through, in milliseconds. */
#define HOLD_MS 30

int uffd_fd = -1;
static bool has_minor, has_wp;

int uffd_open(bool *minor, bool *write_protect)
{
	if (uffd_fd >= 0) {
		*minor = has_minor;
		*write_protect = has_wp;
		return 0;
	}
	/* The device is subject to its file's permissions alone; the system call to privilege and a sysctl. */
	int fd = -1;
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device >= 0) {
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(device);
	}
	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	/* What it offers is told once, to a descriptor that is then used up: ask for all, then for what there is. */
	static const u64 wanted[] = {
		UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
			UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_EXACT_ADDRESS,
		UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
			UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED,
		UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM,
		UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_MISSING_SHMEM,
	};
	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		struct uffdio_api api = { .api = UFFD_API, .features = wanted[i] };
		if (!ioctl(fd, UFFDIO_API, &api)) {
			uffd_fd = fd;
			has_minor = wanted[i] & UFFD_FEATURE_MINOR_SHMEM;
			has_wp = wanted[i] & UFFD_FEATURE_WP_UNPOPULATED;
			*minor = has_minor;
			*write_protect = has_wp;
			return 0;
		}
	}
	int error = errno;
	close(fd);
	return -error;
}

/* Pages armed in a slot: a byte each. */
enum { ARMED_TOUCH = 1, ARMED_WRITE = 2 };

int uffd_trap(struct vm *vm, u64 gpa, u64 size, bool write)
{
	const char *lacks = vm_lacks(vm, write ? "userfaultfd-wp" : "userfaultfd");
	if (*lacks)
		return fail(EOPNOTSUPP, "%s", lacks);
	struct slot *slot = vm_slot_of_range(vm, gpa, size);
	if (!slot)
		return -EINVAL;
	if (!slot->armed)
		slot->armed = calloc(slot->size / PAGE, 1);
	if (!slot->armed)
		return fail(ENOMEM, "no memory to remember which pages are armed");
	u8 *host = slot->host + (gpa - slot->gpa);
	struct uffdio_register reg = {
		.range = { .start = (u64)(uintptr_t)host, .len = size },
		.mode = UFFDIO_REGISTER_MODE_MISSING | (has_minor ? UFFDIO_REGISTER_MODE_MINOR : 0) |
			(has_wp ? UFFDIO_REGISTER_MODE_WP : 0),
	};
	if (ioctl(uffd_fd, UFFDIO_REGISTER, &reg))
		return fail(errno, "userfaultfd does not take 0x%llx + 0x%llx: %s", (unsigned long long)gpa,
			    (unsigned long long)size, strerror(errno));
	u64 first = (gpa - slot->gpa) / PAGE;
	pthread_mutex_lock(&vm->lock);
	for (u64 page = first; page < first + size / PAGE; page++)
		slot->armed[page] |= write ? ARMED_WRITE : ARMED_TOUCH;
	pthread_mutex_unlock(&vm->lock);
	if (write) {
		struct uffdio_writeprotect protect = { .range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
		if (ioctl(uffd_fd, UFFDIO_WRITEPROTECT, &protect))
			return fail(errno, "0x%llx + 0x%llx cannot be write-protected: %s", (unsigned long long)gpa,
				    (unsigned long long)size, strerror(errno));
		return 0;
	}
	/* Takes the pages out of the mapping, not out of memory: KVM drops its entries, the next access faults. */
	if (madvise(host, size, MADV_DONTNEED))
		return fail(errno, "0x%llx + 0x%llx cannot be unmapped: %s", (unsigned long long)gpa,
			    (unsigned long long)size, strerror(errno));
	return 0;
}

int uffd_untrap(struct vm *vm, u64 gpa, u64 size)
{
	struct slot *slot = vm_slot_of_range(vm, gpa, size);
	if (!slot)
		return -EINVAL;
	if (!slot->armed)
		return 0;
	u64 first = (gpa - slot->gpa) / PAGE;
	pthread_mutex_lock(&vm->lock);
	memset(slot->armed + first, 0, size / PAGE);
	pthread_mutex_unlock(&vm->lock);
	struct uffdio_range range = { .start = (u64)(uintptr_t)(slot->host + (gpa - slot->gpa)), .len = size };
	if (ioctl(uffd_fd, UFFDIO_UNREGISTER, &range))
		return fail(errno, "userfaultfd does not let go of 0x%llx + 0x%llx: %s", (unsigned long long)gpa,
			    (unsigned long long)size, strerror(errno));
	return 0;
}

void uffd_untrap_all(struct vm *vm)
{
	for (int i = 0; i < MAX_SLOTS; i++) {
		struct slot *slot = &vm->slots[i];
		if (!slot->used || !slot->armed)
			continue;
		/* Whoever waits is woken, and finds plain memory. */
		struct uffdio_range range = { .start = (u64)(uintptr_t)slot->host, .len = slot->size };
		ioctl(uffd_fd, UFFDIO_UNREGISTER, &range);
		pthread_mutex_lock(&vm->lock);
		free(slot->armed);
		slot->armed = NULL;
		pthread_mutex_unlock(&vm->lock);
	}
}

/* Makes a page there for whoever waits for it. `armed`: what still has to be reported about it. */
static void let_through(const struct slot *slot, u64 page, bool write_protected, u8 armed)
{
	struct uffdio_range range = { .start = (u64)(uintptr_t)slot->host + page * PAGE, .len = PAGE };
	if (write_protected) {
		struct uffdio_writeprotect protect = { .range = range };
		ioctl(uffd_fd, UFFDIO_WRITEPROTECT, &protect);
		ioctl(uffd_fd, UFFDIO_WAKE, &range);
		return;
	}
	bool keep = armed & ARMED_WRITE;
	int error = -1;
#ifdef UFFDIO_CONTINUE
	if (has_minor) {
		struct uffdio_continue go_on = { .range = range, .mode = UFFDIO_CONTINUE_MODE_DONTWAKE };
		error = ioctl(uffd_fd, UFFDIO_CONTINUE, &go_on);
	}
#endif
	if (error) {
		struct uffdio_zeropage zero = { .range = range, .mode = UFFDIO_ZEROPAGE_MODE_DONTWAKE };
		ioctl(uffd_fd, UFFDIO_ZEROPAGE, &zero);
	}
	struct uffdio_writeprotect protect = { .range = range, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	if (keep)
		ioctl(uffd_fd, UFFDIO_WRITEPROTECT, &protect);
	ioctl(uffd_fd, UFFDIO_WAKE, &range);
}

void uffd_resolve(struct vm *vm, struct held_fault *held)
{
	struct slot *slot = vm_slot_at(vm, held->gpa);
	if (!slot || !slot->armed)
		return;
	u64 page = (held->gpa - slot->gpa) / PAGE;
	bool write_protected = !strcmp(held->trap, "write-protected");
	pthread_mutex_lock(&vm->lock);
	/* A first touch that writes is the first write too. */
	slot->armed[page] &= write_protected || held->write ? 0 : (u8)~ARMED_TOUCH;
	u8 armed = slot->armed[page];
	pthread_mutex_unlock(&vm->lock);
	let_through(slot, page, write_protected, armed);
}

static struct vcpu *by_thread(struct vm *vm, pid_t tid)
{
	for (int i = 0; i < vm->vcpu_count; i++) {
		if (vm->vcpus[i]->tid == tid)
			return vm->vcpus[i];
	}
	return NULL;
}

static void take(struct vm *vm, const struct uffd_msg *message)
{
	u64 address = message->arg.pagefault.address;
	u64 flags = message->arg.pagefault.flags;
	struct slot *slot = NULL;
	for (int i = 0; i < MAX_SLOTS && !slot; i++) {
		struct slot *one = &vm->slots[i];
		u64 host = (u64)(uintptr_t)one->host;
		if (one->used && address >= host && address - host < one->size)
			slot = one;
	}
	if (!slot || !slot->armed)
		return;
	u64 offset = address - (u64)(uintptr_t)slot->host, page = offset / PAGE;
	bool write_protected = flags & UFFD_PAGEFAULT_FLAG_WP;
	struct vcpu *vcpu = by_thread(vm, (pid_t)message->arg.pagefault.feat.ptid);
	struct held_fault held = {
		.active = true,
		.gpa = slot->gpa + offset,
		.write = flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP),
		.trap = write_protected			       ? "write-protected" :
			flags & UFFD_PAGEFAULT_FLAG_MINOR ? "minor" :
							       "missing",
		.since = now_ms(),
	};
	u8 wanted = write_protected ? ARMED_WRITE : ARMED_TOUCH | (held.write ? ARMED_WRITE : 0);
	pthread_mutex_lock(&vm->lock);
	/* The access was interrupted before this was read: it comes again when the vCPU goes on. */
	if (vcpu && !vcpu->inside) {
		pthread_mutex_unlock(&vm->lock);
		return;
	}
	if (vcpu && vcpu->held.active) {
		/* An attempt that was interrupted is reported by every attempt after it. */
		bool again = vcpu->held.gpa / PAGE == held.gpa / PAGE && !vcpu->held.resolved;
		/* What else the same instruction touches is told after the first: it cannot be held any more. A page that has
		 * been told of comes again when its waiter was caught between waking up and looking: it is not armed any more. */
		bool tells = !again && (vm->stops & STOP_SECOND_STAGE) && (slot->armed[page] & wanted) &&
			     vcpu->more_held < MORE_HELD;
		if (tells) {
			held.resolved = true;
			vcpu->more[vcpu->more_held++] = held;
		}
		pthread_mutex_unlock(&vm->lock);
		if (!again)
			uffd_resolve(vm, &held);
		return;
	}
	bool report = vcpu && vcpu->state == VCPU_RUNNING && (vm->stops & STOP_SECOND_STAGE) &&
		      (slot->armed[page] & wanted);
	if (report) {
		vcpu->held = held;
		vcpu_kick(vcpu);
	}
	pthread_mutex_unlock(&vm->lock);
	if (!report)
		uffd_resolve(vm, &held);
}

void uffd_read(struct vm *vm)
{
	struct uffd_msg message;
	if (uffd_fd < 0)
		return;
	while (read(uffd_fd, &message, sizeof(message)) == (ssize_t)sizeof(message)) {
		if (message.event == UFFD_EVENT_PAGEFAULT)
			take(vm, &message);
	}
}

int uffd_release_overdue(struct vm *vm)
{
	int waiting = 0;
	for (int i = 0; i < vm->vcpu_count; i++) {
		struct vcpu *vcpu = vm->vcpus[i];
		pthread_mutex_lock(&vm->lock);
		bool inside = vcpu->held.active && !vcpu->held.resolved && vcpu->state == VCPU_RUNNING;
		bool overdue = inside && now_ms() - vcpu->held.since >= HOLD_MS;
		struct held_fault held = vcpu->held;
		if (overdue)
			vcpu->held.resolved = true;
		pthread_mutex_unlock(&vm->lock);
		if (overdue)
			uffd_resolve(vm, &held);
		waiting += inside && !overdue;
	}
	return waiting;
}
