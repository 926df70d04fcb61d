/* SPDX-License-Identifier: MIT */
/* Private and shared memory: which is which, for KVM tells nobody. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "helper.h"

/* Ranges of private memory, in order, none next to another: those of before without the new one, and with it where it is private. */
static int note(struct vm *vm, u64 start, u64 end, bool is_private)
{
	struct range *ranges = calloc((size_t)vm->private_count + 2, sizeof(*ranges));
	if (!ranges)
		return fail(ENOMEM, "no memory to know what is private");
	struct range added = { start, end };
	int count = 0, at = 0;
	for (; at < vm->private_count && vm->private[at].start < start; at++) {
		struct range before = vm->private[at];
		if (is_private && before.end >= start) {
			added.start = before.start;
			added.end = before.end > end ? before.end : end;
			continue;
		}
		ranges[count++] = (struct range){ before.start, before.end < start ? before.end : start };
		if (before.end > end)
			ranges[count++] = (struct range){ end, before.end };
	}
	for (; at < vm->private_count && vm->private[at].start <= added.end; at++) {
		struct range behind = vm->private[at];
		if (is_private)
			added.end = behind.end > added.end ? behind.end : added.end;
		else if (behind.end > end)
			ranges[count++] = (struct range){ behind.start > end ? behind.start : end, behind.end };
	}
	if (is_private)
		ranges[count++] = added;
	for (; at < vm->private_count; at++)
		ranges[count++] = vm->private[at];
	free(vm->private);
	vm->private = ranges;
	vm->private_count = count;
	return 0;
}

int vm_attributes(struct vm *vm, u64 gpa, u64 size, bool is_private)
{
	const char *lacks = vm_lacks(vm, "memory-attributes");
	if (*lacks)
		return fail(EOPNOTSUPP, "%s", lacks);
	struct kvm_memory_attributes attributes = { .address = gpa,
						    .size = size,
						    .attributes = is_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0 };
	if (ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &attributes))
		return fail(errno, "KVM_SET_MEMORY_ATTRIBUTES at 0x%llx + 0x%llx: %s", (unsigned long long)gpa,
			    (unsigned long long)size, strerror(errno));
	return note(vm, gpa, gpa + size, is_private);
}

u64 vm_shared_length(const struct vm *vm, u64 gpa, u64 length)
{
	for (int i = 0; i < vm->private_count; i++) {
		const struct range *range = &vm->private[i];
		if (range->end <= gpa)
			continue;
		if (range->start <= gpa)
			return 0;
		return range->start - gpa < length ? range->start - gpa : length;
	}
	return length;
}

int vm_punch(struct vm *vm, u64 gpa, u64 size)
{
	const struct slot *slot = vm_slot_of_range(vm, gpa, size);
	if (!slot)
		return -EINVAL;
	if (slot->private_fd < 0)
		return fail(EINVAL, "slot %u has no guest_memfd, in which a hole could be punched", slot->id);
	if (fallocate(slot->private_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(gpa - slot->gpa), (off_t)size))
		return fail(errno, "the guest_memfd does not give 0x%llx + 0x%llx back: %s", (unsigned long long)gpa,
			    (unsigned long long)size, strerror(errno));
	return 0;
}
