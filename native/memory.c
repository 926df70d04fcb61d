/* SPDX-License-Identifier: MIT */
/* Guest memory, by physical and by virtual address. */
#include <string.h>

#include "helper.h"

/* How much of a range lies in one slot, and where: up to private memory, of which the host has no mapping. */
static u8 *reach(struct vm *vm, u64 gpa, size_t length, size_t *reachable)
{
	const struct slot *slot = vm_slot_at(vm, gpa);
	if (!slot)
		return NULL;
	u64 left = slot->gpa + slot->size - gpa;
	if (left > length)
		left = length;
	if (slot->private_fd >= 0)
		left = vm_shared_length(vm, gpa, left);
	if (!left)
		return NULL;
	*reachable = (size_t)left;
	return slot->view + (gpa - slot->gpa);
}

size_t memory_read(struct vm *vm, u64 gpa, void *bytes, size_t length)
{
	size_t done = 0;
	while (done < length) {
		size_t some;
		const u8 *from = reach(vm, gpa + done, length - done, &some);
		if (!from)
			break;
		memcpy((u8 *)bytes + done, from, some);
		done += some;
	}
	return done;
}

size_t memory_write(struct vm *vm, u64 gpa, const void *bytes, size_t length)
{
	size_t done = 0;
	while (done < length) {
		size_t some;
		u8 *to = reach(vm, gpa + done, length - done, &some);
		if (!to)
			break;
		memcpy(to, (const u8 *)bytes + done, some);
		plants_written(vm, gpa + done, some);
		vm->written = true;
		done += some;
	}
	return done;
}

void memory_patch(struct vm *vm, u64 gpa, u8 byte)
{
	size_t some;
	u8 *to = reach(vm, gpa, 1, &some);
	if (to)
		*to = byte;
}

/* A table entry: 8 bytes, or 4 in 32-bit paging. */
static bool read_entry(struct vm *vm, u64 gpa, size_t size, u64 *entry)
{
	*entry = 0;
	return memory_read(vm, gpa, entry, size) == size && (*entry & 1);
}

bool memory_translate(struct vm *vm, const struct kvm_sregs *sregs, u64 address, u64 *gpa)
{
	const u64 frame_mask = 0x000ffffffffff000ULL;
	u64 entry;
	if (!(sregs->cr0 & CR0_PG)) {
		*gpa = address;
		return true;
	}
	if (!(sregs->cr4 & CR4_PAE)) {
		address &= 0xffffffff;
		if (!read_entry(vm, (sregs->cr3 & 0xfffff000) + (address >> 22) * 4, 4, &entry))
			return false;
		if ((entry & 0x80) && (sregs->cr4 & CR4_PSE)) {
			/* PSE-36: bits 16:13 are address bits 35:32. */
			*gpa = (entry & 0xffc00000) | ((entry >> 13 & 0xf) << 32) | (address & 0x3fffff);
			return true;
		}
		if (!read_entry(vm, (entry & 0xfffff000) + (address >> 12 & 0x3ff) * 4, 4, &entry))
			return false;
		*gpa = (entry & 0xfffff000) | (address & 0xfff);
		return true;
	}
	bool is_long = sregs->efer & EFER_LMA;
	int levels = !is_long ? 3 : sregs->cr4 & CR4_LA57 ? 5 : 4;
	u64 table = is_long ? sregs->cr3 & frame_mask : sregs->cr3 & 0xffffffe0;
	if (!is_long)
		address &= 0xffffffff;
	for (int level = levels;; level--) {
		int shift = 12 + 9 * (level - 1);
		if (!read_entry(vm, table + (address >> shift & 0x1ff) * 8, 8, &entry))
			return false;
		bool is_leaf = level == 1 || ((entry & 0x80) && (level == 2 || (level == 3 && is_long)));
		if (is_leaf) {
			u64 within = (1ULL << shift) - 1;
			*gpa = (entry & frame_mask & ~within) | (address & within);
			return true;
		}
		table = entry & frame_mask;
	}
}

size_t memory_read_virtual(struct vm *vm, const struct kvm_sregs *sregs, u64 address, void *bytes, size_t length)
{
	size_t done = 0;
	while (done < length) {
		u64 gpa;
		size_t some = PAGE - (address + done) % PAGE;
		if (some > length - done)
			some = length - done;
		if (!memory_translate(vm, sregs, address + done, &gpa))
			break;
		size_t got = memory_read(vm, gpa, (u8 *)bytes + done, some);
		done += got;
		if (got < some)
			break;
	}
	return done;
}

size_t memory_write_virtual(struct vm *vm, const struct kvm_sregs *sregs, u64 address, const void *bytes, size_t length)
{
	size_t done = 0;
	while (done < length) {
		u64 gpa;
		size_t some = PAGE - (address + done) % PAGE;
		if (some > length - done)
			some = length - done;
		if (!memory_translate(vm, sregs, address + done, &gpa))
			break;
		size_t put = memory_write(vm, gpa, (const u8 *)bytes + done, some);
		done += put;
		if (put < some)
			break;
	}
	return done;
}
