/* SPDX-License-Identifier: MIT */
/* Breakpoints, and what the guest's own exception handling tells. */
#include <errno.h>
#include <string.h>

#include "helper.h"

static struct breakpoint *inserted_at(struct vm *vm, u64 address)
{
	for (int i = 0; i < MAX_BREAKPOINTS; i++) {
		if (vm->breakpoints[i].used && vm->breakpoints[i].address == address)
			return &vm->breakpoints[i];
	}
	return NULL;
}

struct breakpoint *breakpoint_here(struct vm *vm, const struct kvm_sregs *sregs, u64 rip)
{
	u64 gpa = 0;
	bool mapped = vm->has_breakpoints && memory_translate(vm, sregs, rip, &gpa);
	for (int i = 0; i < MAX_BREAKPOINTS; i++) {
		struct breakpoint *point = &vm->breakpoints[i];
		if (point->used && (point->hardware ? point->address == rip : mapped && point->gpa == gpa))
			return point;
	}
	return NULL;
}

static int hardware_count(const struct vm *vm)
{
	int count = 0;
	for (int i = 0; i < MAX_BREAKPOINTS; i++)
		count += vm->breakpoints[i].used && vm->breakpoints[i].hardware;
	return count;
}

int breakpoint_insert(struct vm *vm, struct vcpu *vcpu, bool hardware, u64 address)
{
	if (inserted_at(vm, address))
		return 0;
	struct breakpoint *free_one = NULL;
	for (int i = 0; i < MAX_BREAKPOINTS && !free_one; i++) {
		if (!vm->breakpoints[i].used)
			free_one = &vm->breakpoints[i];
	}
	if (!free_one)
		return fail(ENOSPC, "there are %d breakpoints already", MAX_BREAKPOINTS);
	/* One register is kept for the guest's #PF handler, one for its #BP handler. */
	if (hardware && hardware_count(vm) >= DEBUG_REGISTERS - 2)
		return fail(ENOSPC, "%d hardware breakpoints are possible: the other debug registers serve page faults and int3",
			    DEBUG_REGISTERS - 2);
	struct breakpoint point = { .used = true, .hardware = hardware, .address = address };
	if (!hardware) {
		struct kvm_sregs sregs;
		if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
			return fail(errno, "registers cannot be read: %s", strerror(errno));
		int error = memory_translate(vm, &sregs, address, &point.gpa) ?
				    plant_add(vm, point.gpa, host_debug(vm)->kernel_int3 ? INT3 : HLT) :
				    -EFAULT;
		if (error == -EFAULT)
			return fail(EFAULT, "nothing is mapped at 0x%llx", (unsigned long long)address);
		if (error)
			return fail(-error, "there is no room for a breakpoint at 0x%llx", (unsigned long long)address);
		vm->written = true;
	}
	*free_one = point;
	vm->has_breakpoints = true;
	return 0;
}

static void take_out(struct vm *vm, struct breakpoint *point)
{
	if (!point->hardware) {
		plant_drop(vm, point->gpa);
		vm->written = true;
	}
	point->used = false;
	vm->has_breakpoints = false;
	for (int i = 0; i < MAX_BREAKPOINTS; i++)
		vm->has_breakpoints |= vm->breakpoints[i].used;
}

int breakpoint_remove(struct vm *vm, bool hardware, u64 address)
{
	struct breakpoint *point = inserted_at(vm, address);
	if (point && point->hardware == hardware)
		take_out(vm, point);
	return 0;
}

void breakpoint_keep_all(struct vm *vm)
{
	vm->written |= plants_keep(vm);
}

void breakpoint_remove_all(struct vm *vm)
{
	for (int i = 0; i < MAX_BREAKPOINTS; i++) {
		if (vm->breakpoints[i].used)
			take_out(vm, &vm->breakpoints[i]);
	}
}

bool guest_handler(struct vm *vm, const struct kvm_sregs *sregs, int vector, u64 *address)
{
	u8 gate[16];
	size_t size = sregs->efer & EFER_LMA ? 16 : 8;
	u64 offset = (u64)vector * size;
	if (offset + size - 1 > sregs->idt.limit ||
	    memory_read_virtual(vm, sregs, sregs->idt.base + offset, gate, size) != size)
		return false;
	/* Present, and an interrupt or trap gate. */
	if (!(gate[5] & 0x80) || (gate[5] & 0x0e) != 0x0e)
		return false;
	u64 low = (u64)(gate[0] | gate[1] << 8) | (u64)(gate[6] | gate[7] << 8) << 16;
	u64 high = 0;
	if (size == 16)
		high = (u64)gate[8] | (u64)gate[9] << 8 | (u64)gate[10] << 16 | (u64)gate[11] << 24;
	*address = low | high << 32;
	return true;
}

bool guest_pf_handler(struct vm *vm, const struct kvm_sregs *sregs, u64 *address)
{
	if (vm->handler) {
		*address = vm->handler;
		return true;
	}
	return guest_handler(vm, sregs, 14, address);
}

bool guest_frame(struct vm *vm, const struct kvm_regs *regs, const struct kvm_sregs *sregs, bool has_error,
		 struct exception_frame *frame)
{
	bool is_long = sregs->efer & EFER_LMA;
	unsigned word = is_long ? 8 : 4;
	u64 at = is_long ? regs->rsp : (sregs->ss.base + regs->rsp) & 0xffffffff;
	u64 words[6] = { 0 };
	unsigned count = 0, error = has_error ? 1 : 0;
	/* In protected mode the stack's own place is pushed only by who comes from another privilege level. */
	for (unsigned wanted = error + (is_long ? 5 : 3); count < wanted; count++) {
		if (memory_read_virtual(vm, sregs, at + (u64)count * word, &words[count], word) != word)
			return false;
		if (!is_long && count == error + 2 && (words[error + 1] & 3) > (sregs->cs.selector & 3U))
			wanted += 2;
	}
	*frame = (struct exception_frame){
		.error = has_error ? words[0] : 0,
		.rip = words[error],
		.cs = words[error + 1] & 0xffff,
		.rflags = words[error + 2],
		.rsp = regs->rsp + (u64)count * word,
		.ss = sregs->ss.selector,
		.flags_at = at + (u64)(error + 2) * word,
		.word = word,
	};
	if (count == error + 5) {
		frame->rsp = words[error + 3];
		frame->ss = words[error + 4] & 0xffff;
	}
	return true;
}
