/* SPDX-License-Identifier: MIT */
/*
 * Bytes of ours in guest memory, in place of instructions: breakpoints, and where debug registers are not honoured also what
 * stops at the guest's handlers. The server and all vCPUs' threads put them in and take them out.
 */
#include <errno.h>

#include "helper.h"

static struct plant *find(struct vm *vm, u64 gpa)
{
	for (int i = 0; i < MAX_PLANTS; i++) {
		if (vm->plants[i].users && vm->plants[i].gpa == gpa)
			return &vm->plants[i];
	}
	return NULL;
}

/* Puts it in place of what is there now, which is the guest's. */
static void put_in(struct vm *vm, struct plant *plant)
{
	if (memory_read(vm, plant->gpa, &plant->original, 1) == 1)
		memory_patch(vm, plant->gpa, plant->byte);
}

static void take_out(struct vm *vm, const struct plant *plant)
{
	u8 now;
	/* The guest may have put other code there since. */
	if (memory_read(vm, plant->gpa, &now, 1) == 1 && now == plant->byte)
		memory_patch(vm, plant->gpa, plant->original);
}

static int add(struct vm *vm, u64 gpa, u8 byte)
{
	struct plant *plant = find(vm, gpa);
	if (plant) {
		plant->users++;
		return 0;
	}
	u8 now;
	if (memory_read(vm, gpa, &now, 1) != 1)
		return -EFAULT;
	for (int i = 0; i < MAX_PLANTS; i++) {
		plant = &vm->plants[i];
		if (plant->users)
			continue;
		*plant = (struct plant){ .gpa = gpa, .byte = byte, .users = 1 };
		put_in(vm, plant);
		vm->plant_count++;
		return 0;
	}
	return -ENOSPC;
}

int plant_add(struct vm *vm, u64 gpa, u8 byte)
{
	pthread_mutex_lock(&vm->plant_lock);
	int error = add(vm, gpa, byte);
	pthread_mutex_unlock(&vm->plant_lock);
	return error;
}

void plant_drop(struct vm *vm, u64 gpa)
{
	pthread_mutex_lock(&vm->plant_lock);
	struct plant *plant = find(vm, gpa);
	if (plant && !--plant->users) {
		vm->plant_count--;
		if (!plant->lifted)
			take_out(vm, plant);
	}
	pthread_mutex_unlock(&vm->plant_lock);
}

bool plants_keep(struct vm *vm)
{
	bool any = false;
	pthread_mutex_lock(&vm->plant_lock);
	for (int i = 0; i < MAX_PLANTS; i++) {
		struct plant *plant = &vm->plants[i];
		u8 now;
		/* Had the guest written the very same byte, nobody could tell. */
		if (!plant->users || plant->lifted || memory_read(vm, plant->gpa, &now, 1) != 1 || now == plant->byte)
			continue;
		put_in(vm, plant);
		any = true;
	}
	pthread_mutex_unlock(&vm->plant_lock);
	return any;
}

void plants_written(struct vm *vm, u64 gpa, size_t length)
{
	pthread_mutex_lock(&vm->plant_lock);
	for (int i = 0; i < MAX_PLANTS && vm->plant_count; i++) {
		struct plant *plant = &vm->plants[i];
		if (plant->users && !plant->lifted && plant->gpa >= gpa && plant->gpa - gpa < length)
			put_in(vm, plant);
	}
	pthread_mutex_unlock(&vm->plant_lock);
}

bool plant_here(struct vm *vm, const struct kvm_sregs *sregs, u64 rip, struct plant *copy)
{
	u64 gpa;
	pthread_mutex_lock(&vm->plant_lock);
	bool mapped = vm->plant_count && memory_translate(vm, sregs, rip, &gpa);
	const struct plant *plant = mapped ? find(vm, gpa) : NULL;
	if (plant)
		*copy = *plant;
	pthread_mutex_unlock(&vm->plant_lock);
	return plant;
}

bool plant_lift(struct vm *vm, u64 gpa)
{
	pthread_mutex_lock(&vm->plant_lock);
	struct plant *plant = find(vm, gpa);
	if (plant) {
		take_out(vm, plant);
		plant->lifted = true;
	}
	pthread_mutex_unlock(&vm->plant_lock);
	return plant;
}

void plant_lower(struct vm *vm, u64 gpa)
{
	pthread_mutex_lock(&vm->plant_lock);
	struct plant *plant = find(vm, gpa);
	if (plant && plant->lifted) {
		plant->lifted = false;
		put_in(vm, plant);
	}
	pthread_mutex_unlock(&vm->plant_lock);
}

void plants_hide(struct vm *vm, u64 gpa, u8 *bytes, size_t length)
{
	pthread_mutex_lock(&vm->plant_lock);
	for (int i = 0; i < MAX_PLANTS; i++) {
		const struct plant *plant = &vm->plants[i];
		if (plant->users && plant->gpa >= gpa && plant->gpa - gpa < length && bytes[plant->gpa - gpa] == plant->byte)
			bytes[plant->gpa - gpa] = plant->original;
	}
	pthread_mutex_unlock(&vm->plant_lock);
}
