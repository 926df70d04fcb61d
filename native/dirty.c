/* SPDX-License-Identifier: MIT */
/* Which pages the guest wrote: the dirty log in both its kinds, and the dirty ring. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "helper.h"

static struct slot *logged_slot(struct vm *vm, u32 id)
{
	struct slot *slot = vm_slot(vm, id);
	if (!slot)
		fail(ENOENT, "there is no slot %u", id);
	else if (!(slot->flags & KVM_MEM_LOG_DIRTY_PAGES)) {
		fail(EINVAL, "slot %u keeps no dirty log: give it the flag log", id);
		return NULL;
	}
	return slot;
}

/* What KVM has in a slot's log, and what was kept of it when KVM was made to forget the slot; NULL with errno. */
static u64 *read_log(struct vm *vm, const struct slot *slot)
{
	u64 words = (slot->size / PAGE + 63) / 64;
	u64 *bitmap = calloc(words, 8);
	if (!bitmap)
		return NULL;
	struct kvm_dirty_log log = { .slot = slot->id, .dirty_bitmap = bitmap };
	if (ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log)) {
		int error = errno;
		free(bitmap);
		errno = error;
		return NULL;
	}
	for (u64 i = 0; slot->kept_log && i < words; i++)
		bitmap[i] |= slot->kept_log[i];
	return bitmap;
}

void dirty_keep(struct vm *vm, struct slot *slot)
{
	if (!(slot->flags & KVM_MEM_LOG_DIRTY_PAGES) || vm->dirty_ring)
		return;
	u64 *bitmap = read_log(vm, slot);
	if (!bitmap)
		return;
	free(slot->kept_log);
	slot->kept_log = bitmap;
}

int dirty_log(struct vm *vm, u32 id, struct text *json)
{
	struct slot *slot = logged_slot(vm, id);
	if (!slot)
		return -ENOENT;
	u64 pages = slot->size / PAGE;
	u64 *bitmap = read_log(vm, slot);
	if (!bitmap)
		return fail(errno, "slot %u: KVM_GET_DIRTY_LOG: %s%s", id, strerror(errno),
			    vm->dirty_ring ? " (with a dirty ring there is no dirty log)" : "");
	/* What is cleared by hand stays until it is. */
	if (!vm->dirty_manual) {
		free(slot->kept_log);
		slot->kept_log = NULL;
	}
	const char *comma = "";
	text_add(json, "[");
	for (u64 page = 0; page < pages; page++) {
		if (bitmap[page / 64] >> (page % 64) & 1) {
			text_add(json, "%s%llu", comma, (unsigned long long)(slot->gpa / PAGE + page));
			comma = ",";
		}
	}
	text_add(json, "]");
	free(bitmap);
	return 0;
}

int dirty_manual(struct vm *vm, bool on)
{
	const char *lacks = vm_lacks(vm, "dirty-manual");
	if (*lacks)
		return fail(EOPNOTSUPP, "%s", lacks);
	struct kvm_enable_cap enable = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { on } };
	if (ioctl(vm->fd, KVM_ENABLE_CAP, &enable))
		return fail(errno, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: %s", strerror(errno));
	vm->dirty_manual = on;
	return 0;
}

int dirty_clear(struct vm *vm, u32 id, u64 first, u64 count)
{
	const struct slot *slot = logged_slot(vm, id);
	if (!slot)
		return -ENOENT;
	u64 pages = slot->size / PAGE;
	if (!vm->dirty_manual)
		return fail(EINVAL, "pages are protected again by qKvm.Dirty itself: vKvm.DirtyManual:1 changes that");
	if (first % 64 || !count || first > pages || count > pages - first || (count % 64 && first + count != pages))
		return fail(EINVAL, "slot %u: pages 0x%llx + 0x%llx: both must be multiples of 64 within its 0x%llx pages", id,
			    (unsigned long long)first, (unsigned long long)count, (unsigned long long)pages);
	for (u64 page = first; slot->kept_log && page < first + count; page++)
		slot->kept_log[page / 64] &= ~(1ULL << (page % 64));
	u64 *bitmap = malloc((count + 63) / 64 * 8);
	if (!bitmap)
		return fail(ENOMEM, "no memory for the dirty log of slot %u", id);
	memset(bitmap, 0xff, (count + 63) / 64 * 8);
	struct kvm_clear_dirty_log clear = { .slot = id, .first_page = first, .num_pages = (u32)count, .dirty_bitmap = bitmap };
	int error = ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &clear) ? errno : 0;
	free(bitmap);
	return error ? fail(error, "slot %u: KVM_CLEAR_DIRTY_LOG: %s", id, strerror(error)) : 0;
}

/* ---- the ring */

bool ring_harvest(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;
	bool any = false;
	if (!vcpu->ring)
		return false;
	pthread_mutex_lock(&vm->lock);
	for (;;) {
		struct kvm_dirty_gfn *entry = &vcpu->ring[vcpu->ring_next % vm->dirty_ring];
		u32 flags = __atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE);
		if (!(flags & KVM_DIRTY_GFN_F_DIRTY))
			break;
		const struct slot *slot = vm_slot(vm, entry->slot & 0xffff);
		text_add(&vcpu->ring_taken, "%s[%u,%llu]", vcpu->ring_taken.length ? "," : "", entry->slot & 0xffff,
			 (unsigned long long)((slot ? slot->gpa / PAGE : 0) + entry->offset));
		__atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		vcpu->ring_next++;
		any = true;
	}
	pthread_mutex_unlock(&vm->lock);
	if (any)
		ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, 0);
	return any;
}

int ring_take(struct vcpu *vcpu, struct text *json)
{
	if (!vcpu->ring)
		return fail(EOPNOTSUPP, "there is no dirty ring: start the helper with --dirty-ring N");
	ring_harvest(vcpu);
	pthread_mutex_lock(&vcpu->vm->lock);
	text_add(json, "[%s]", vcpu->ring_taken.at ? vcpu->ring_taken.at : "");
	text_free(&vcpu->ring_taken);
	pthread_mutex_unlock(&vcpu->vm->lock);
	return 0;
}
