/* SPDX-License-Identifier: MIT */
/* vCPUs: one thread each, which runs until there is a reason to stop. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "helper.h"

/* Steps made in search of an IDT, before the guest runs and is looked at every few milliseconds instead. */
#define HUNT_STEPS 100000
/* Ports: a serial line, its status, the stop port of stubs, and a port that ends the machine. */
#define PORT_SERIAL 0x3f8
#define PORT_SERIAL_STATUS 0x3fd
#define PORT_STOP 0x4b
#define PORT_EXIT 0xf4

/* Bytes of the console that are kept until a client takes them. */
#define MOST_CONSOLE (1 << 20)

/* Signals of the remote protocol. */
enum { SIGNAL_INT = 2, SIGNAL_ILL = 4, SIGNAL_TRAP = 5, SIGNAL_SEGV = 11 };

enum outcome {
	/* Something was taken care of: look again and go on. */
	GO_ON,
	/* The instruction that was to be stepped has run. */
	STEPPED,
	/* `stop` and `signal` say why. */
	STOPPED,
};

u64 now_ms(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (u64)time.tv_sec * 1000 + (u64)time.tv_nsec / 1000000;
}

static enum outcome stop(struct vcpu *vcpu, int signal, const char *format, ...) __attribute__((format(printf, 3, 4)));

static enum outcome stop(struct vcpu *vcpu, int signal, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(vcpu->stop, sizeof(vcpu->stop), format, arguments);
	va_end(arguments);
	vcpu->signal = signal;
	return STOPPED;
}

static void get_state(struct vcpu *vcpu, struct kvm_regs *regs, struct kvm_sregs *sregs)
{
	memset(regs, 0, sizeof(*regs));
	memset(sregs, 0, sizeof(*sregs));
	ioctl(vcpu->fd, KVM_GET_REGS, regs);
	ioctl(vcpu->fd, KVM_GET_SREGS, sregs);
}

/* ---- getting in and out of KVM_RUN */

void vcpu_kick(struct vcpu *vcpu)
{
	if (!vcpu->inside)
		return;
	vcpu->run->immediate_exit = 1;
	pthread_kill(vcpu->thread, SIGUSR1);
}

void vcpu_pause(struct vcpu *vcpu)
{
	pthread_mutex_lock(&vcpu->vm->lock);
	vcpu->stop_wanted = vcpu->state == VCPU_RUNNING;
	vcpu_kick(vcpu);
	pthread_mutex_unlock(&vcpu->vm->lock);
}

/* Waits while somebody wants the machine to stand still. The lock is held. */
static void park(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;
	vcpu->parked = true;
	pthread_cond_broadcast(&vm->changed);
	while (vm->frozen)
		pthread_cond_wait(&vm->changed, &vm->lock);
	vcpu->parked = false;
}

/* Waits a moment for a change. The lock is held; the server's thread serves userfaultfd meanwhile, as it does at all times. */
static void wait_a_moment(struct vm *vm, bool is_server)
{
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += 5000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	pthread_cond_timedwait(&vm->changed, &vm->lock, &until);
	if (!is_server)
		return;
	pthread_mutex_unlock(&vm->lock);
	uffd_read(vm);
	uffd_release_overdue(vm);
	pthread_mutex_lock(&vm->lock);
}

/* Waits for others that want the machine to stand still; false when there is a reason not to run now. */
static bool enter(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;
	pthread_mutex_lock(&vm->lock);
	if (vm->solo != vcpu)
		park(vcpu);
	bool wanted = vcpu->stop_wanted || vcpu->recheck;
	if (!wanted) {
		vcpu->inside = true;
		vcpu->run->immediate_exit = 0;
	}
	pthread_mutex_unlock(&vm->lock);
	return !wanted;
}

static void leave(struct vcpu *vcpu)
{
	pthread_mutex_lock(&vcpu->vm->lock);
	vcpu->inside = false;
	pthread_cond_broadcast(&vcpu->vm->changed);
	pthread_mutex_unlock(&vcpu->vm->lock);
}

/* Lets KVM finish the input or output that it exited for, and nothing more. */
static void complete(struct vcpu *vcpu)
{
	/* A write that crosses pages comes in two parts. */
	vcpu->run->immediate_exit = 1;
	while (!ioctl(vcpu->fd, KVM_RUN, 0) && vcpu->run->exit_reason == KVM_EXIT_MMIO && vcpu->run->mmio.is_write)
		;
	vcpu->run->immediate_exit = 0;
}

/* The machine stands still; with `self`, that vCPU alone may run. */
static void freeze(struct vm *vm, struct vcpu *self)
{
	pthread_mutex_lock(&vm->lock);
	while (vm->frozen) {
		if (self)
			park(self);
		else
			wait_a_moment(vm, true);
	}
	vm->frozen = true;
	vm->solo = self;
	for (;;) {
		bool anyone = false;
		for (int i = 0; i < vm->vcpu_count; i++) {
			struct vcpu *other = vm->vcpus[i];
			/* Also outside KVM_RUN a vCPU's thread looks at breakpoints and slots. */
			if (other == self || other->state != VCPU_RUNNING || other->parked)
				continue;
			anyone = true;
			vcpu_kick(other);
		}
		if (!anyone)
			break;
		wait_a_moment(vm, !self);
	}
	pthread_mutex_unlock(&vm->lock);
}

static void thaw(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->frozen = false;
	vm->solo = NULL;
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
}

void vm_quiesce(struct vm *vm)
{
	freeze(vm, NULL);
}

void vm_unquiesce(struct vm *vm)
{
	thaw(vm);
}

/* ---- arming */

enum { VECTOR_BP = 3, VECTOR_GP = 13 };

/* Where execution is to be stopped, for a run or for a step. */
struct armed {
	struct kvm_guest_debug debug;
	int registers;
	/* Where debug registers are not honoured: addresses that bytes in memory are to stop at. */
	u64 places[MAX_WATCHED];
	int place_count;
	/* A step begins here: what stops at it is left out. */
	bool has_start;
	u64 start;
	/* Handlers of the guest that tell what happened; 0: not watched. */
	u64 pf_handler;
	u64 bp_handler;
	u64 gp_handler;
	u64 db_handler;
	u64 syscall_entry;
	/* A step in user code that is made with RFLAGS.TF. */
	bool by_flag;
	struct kvm_sregs before;
};

static void arm_address(const struct vm *vm, struct armed *armed, u64 address)
{
	if (armed->has_start && address == armed->start)
		return;
	if (!host_debug(vm)->kernel_registers) {
		if (armed->place_count < MAX_WATCHED)
			armed->places[armed->place_count++] = address;
		return;
	}
	if (armed->registers == DEBUG_REGISTERS)
		return;
	armed->debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
	armed->debug.arch.debugreg[armed->registers] = address;
	armed->debug.arch.debugreg[7] |= 2ULL << (2 * armed->registers);
	armed->registers++;
}

static u64 read_msr(struct vcpu *vcpu, u32 index)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} msr = { .header.nmsrs = 1, .entry.index = index };
	return ioctl(vcpu->fd, KVM_GET_MSRS, &msr) == 1 ? msr.entry.data : 0;
}

static bool has_software(const struct vm *vm)
{
	for (int i = 0; i < MAX_BREAKPOINTS; i++) {
		if (vm->breakpoints[i].used && !vm->breakpoints[i].hardware)
			return true;
	}
	return false;
}

/* Whether an int3 of ours in user code is seen only where the guest's handler begins. */
static bool watches_int3(struct vm *vm)
{
	return has_software(vm) && host_debug(vm)->kernel_int3 && !host_debug(vm)->user_int3;
}

/* Whether a breakpoint is a hlt, which user code may not execute: that is seen where the guest's #GP handler begins. */
static bool watches_hlt(struct vm *vm)
{
	for (int i = 0; i < MAX_BREAKPOINTS; i++) {
		const struct breakpoint *point = &vm->breakpoints[i];
		if (point->used && !(point->hardware ? host_debug(vm)->kernel_registers : host_debug(vm)->kernel_int3))
			return true;
	}
	return false;
}

bool vm_watches_handlers(struct vm *vm)
{
	return vm->stops & STOP_GUEST_PF || watches_int3(vm) || watches_hlt(vm);
}

/* Whether a handler that is to be watched is not there yet: the guest has not loaded its IDT. */
static bool lacks_handlers(struct vm *vm, const struct kvm_sregs *sregs)
{
	u64 handler;
	return ((vm->stops & STOP_GUEST_PF) && !guest_pf_handler(vm, sregs, &handler)) ||
	       (watches_int3(vm) && !guest_handler(vm, sregs, VECTOR_BP, &handler)) ||
	       (watches_hlt(vm) && !guest_handler(vm, sregs, VECTOR_GP, &handler));
}

static bool is_among(const u64 *list, int count, u64 value)
{
	while (count && list[count - 1] != value)
		count--;
	return count;
}

/* Puts a hlt at each of some places, and takes those out that were there for this vCPU's sake. */
static void watch(struct vcpu *vcpu, const u64 *gpas, int count)
{
	struct vm *vm = vcpu->vm;
	u64 before[MAX_WATCHED];
	int before_count = vcpu->watched_count;
	memcpy(before, vcpu->watched, sizeof(before));
	vcpu->watched_count = 0;
	for (int i = 0; i < count; i++) {
		if (!is_among(vcpu->watched, vcpu->watched_count, gpas[i]) &&
		    (is_among(before, before_count, gpas[i]) || !plant_add(vm, gpas[i], HLT)))
			vcpu->watched[vcpu->watched_count++] = gpas[i];
	}
	for (int i = 0; i < before_count; i++) {
		if (!is_among(vcpu->watched, vcpu->watched_count, before[i]))
			plant_drop(vm, before[i]);
	}
}

/* Where its addresses are now: the guest may have changed its tables, and its code. */
static void watch_places(struct vcpu *vcpu, const struct armed *armed)
{
	struct vm *vm = vcpu->vm;
	struct kvm_sregs sregs;
	u64 gpas[MAX_WATCHED];
	int count = 0;
	if (!armed->place_count && !vcpu->watched_count && !watches_hlt(vm))
		return;
	ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
	for (int i = 0; i < armed->place_count; i++)
		count += memory_translate(vm, &sregs, armed->places[i], &gpas[count]);
	watch(vcpu, gpas, count);
	plants_keep(vm);
}

static void arm_run(struct vcpu *vcpu, struct armed *armed)
{
	struct vm *vm = vcpu->vm;
	if (has_software(vm) && host_debug(vm)->kernel_int3)
		armed->debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
	for (int i = 0; i < MAX_BREAKPOINTS; i++) {
		if (vm->breakpoints[i].used && vm->breakpoints[i].hardware)
			arm_address(vm, armed, vm->breakpoints[i].address);
	}
	if (!vm_watches_handlers(vm))
		return;
	struct kvm_sregs sregs;
	ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
	if ((vm->stops & STOP_GUEST_PF) && guest_pf_handler(vm, &sregs, &armed->pf_handler))
		arm_address(vm, armed, armed->pf_handler);
	if (watches_int3(vm) && guest_handler(vm, &sregs, VECTOR_BP, &armed->bp_handler))
		arm_address(vm, armed, armed->bp_handler);
	if (watches_hlt(vm) && guest_handler(vm, &sregs, VECTOR_GP, &armed->gp_handler))
		arm_address(vm, armed, armed->gp_handler);
}

#define DR6_SINGLE_STEP (1ULL << 14)
#define MSR_LSTAR 0xc0000082

/* A step where KVM does not honour single-stepping of user code: by the processor's own trap flag. */
static enum outcome arm_flag_step(struct vcpu *vcpu, struct armed *armed)
{
	struct vm *vm = vcpu->vm;
	struct kvm_regs regs;
	get_state(vcpu, &regs, &armed->before);
	if (!guest_handler(vm, &armed->before, 1, &armed->db_handler))
		return stop(vcpu, SIGNAL_TRAP, "reason=error,rip=%llx,errno=%x,words=%s", regs.rip, EOPNOTSUPP,
			    "this KVM does not single-step user code and the guest has no #DB handler to stop at");
	arm_address(vm, armed, armed->db_handler);
	if (guest_pf_handler(vm, &armed->before, &armed->pf_handler))
		arm_address(vm, armed, armed->pf_handler);
	armed->syscall_entry = read_msr(vcpu, MSR_LSTAR);
	if (armed->syscall_entry)
		arm_address(vm, armed, armed->syscall_entry);
	armed->by_flag = true;
	return GO_ON;
}

/* A segment of 64-bit user code or its stack, as the guest's GDT has it. */
static bool user_segment(struct vm *vm, const struct kvm_sregs *sregs, u64 selector, bool code, struct kvm_segment *segment)
{
	u64 descriptor, offset = selector & ~7ULL;
	if ((selector & 7) != 3 || offset + 7 > sregs->gdt.limit ||
	    memory_read_virtual(vm, sregs, sregs->gdt.base + offset, &descriptor, 8) != 8)
		return false;
	unsigned type = descriptor >> 40 & 0xf, present_user = descriptor >> 44 & 0xf;
	bool is_code = type & 8, is_64_bit = descriptor >> 53 & 1;
	if (present_user != 0xf || is_code != code || (code && !is_64_bit))
		return false;
	set_flat_segment(segment, (u16)selector, code, true);
	return true;
}

/*
 * Where KVM does not single-step user code, a step over `iretq` would run on into it. The return is made here instead,
 * if it leads to 64-bit code of the user's.
 */
static bool return_to_user(struct vcpu *vcpu, const struct kvm_regs *before, const struct kvm_sregs *old)
{
	struct vm *vm = vcpu->vm;
	struct kvm_regs regs = *before;
	struct kvm_sregs sregs = *old;
	struct exception_frame frame;
	u8 code[2];
	if (memory_read_virtual(vm, &sregs, regs.rip, code, 2) != 2 || code[0] != 0x48 || code[1] != 0xcf ||
	    !guest_frame(vm, &regs, &sregs, false, &frame))
		return false;
	if (!user_segment(vm, &sregs, frame.cs, true, &sregs.cs) || !user_segment(vm, &sregs, frame.ss, false, &sregs.ss))
		return false;
	regs.rip = frame.rip;
	regs.rsp = frame.rsp;
	regs.rflags = frame.rflags;
	return !ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) && !ioctl(vcpu->fd, KVM_SET_REGS, &regs);
}

static enum outcome arm_step(struct vcpu *vcpu, struct armed *armed)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	get_state(vcpu, &regs, &sregs);
	if (!host_debug(vcpu->vm)->user_step) {
		if (sregs.ss.dpl == 3)
			return arm_flag_step(vcpu, armed);
		if (return_to_user(vcpu, &regs, &sregs))
			return STEPPED;
	}
	armed->has_start = true;
	armed->start = regs.rip;
	/* Whatever stops a run stops a step too; and where the #PF handler begins a step ends, wanted or not. */
	arm_run(vcpu, armed);
	if (!armed->pf_handler && guest_pf_handler(vcpu->vm, &sregs, &armed->pf_handler))
		arm_address(vcpu->vm, armed, armed->pf_handler);
	armed->debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
	return GO_ON;
}

/* ---- what an exit means */

static enum outcome stop_at_page_fault(struct vcpu *vcpu, const struct kvm_regs *regs, const struct kvm_sregs *sregs)
{
	struct exception_frame frame;
	if (!guest_frame(vcpu->vm, regs, sregs, true, &frame))
		return stop(vcpu, SIGNAL_TRAP, "reason=guest-pf,gva=%llx,completed=0,exact=gva", sregs->cr2);
	const char *access = frame.error & 16 ? "fetch" : frame.error & 2 ? "write" : "read";
	/* Bit 4 is told only where NX or SMEP is on: else a fetch is the access to the instruction's own address. */
	if (!(frame.error & 18) && sregs->cr2 == frame.rip)
		access = "fetch";
	return stop(vcpu, SIGNAL_TRAP,
		    "reason=guest-pf,access=%s,gva=%llx,error=%llx,rip=%llx,cpl=%u,completed=0,exact=gva+error+rip+cpl,derived=access",
		    access, sregs->cr2, (unsigned long long)frame.error, (unsigned long long)frame.rip,
		    (unsigned)(frame.cs & 3));
}

/* Takes the delivery of an exception back: the state is that of the interrupted code again. */
static void unwind(struct vcpu *vcpu, const struct exception_frame *frame, u64 rip, const struct kvm_sregs *before)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	get_state(vcpu, &regs, &sregs);
	regs.rip = rip;
	regs.rsp = frame->rsp;
	regs.rflags = frame->rflags & ~RFLAGS_TF;
	if (before) {
		sregs.cs = before->cs;
		sregs.ss = before->ss;
	} else {
		bool is_64_bit = frame->word == 8;
		set_flat_segment(&sregs.cs, (u16)frame->cs, true, is_64_bit);
		set_flat_segment(&sregs.ss, (u16)frame->ss, false, is_64_bit);
	}
	ioctl(vcpu->fd, KVM_SET_SREGS, &sregs);
	ioctl(vcpu->fd, KVM_SET_REGS, &regs);
}

/* The trap flag was ours: nothing that the guest sees may keep it. */
static void clear_flag_in_frame(struct vm *vm, const struct kvm_regs *regs, const struct kvm_sregs *sregs)
{
	struct exception_frame frame;
	if (!guest_frame(vm, regs, sregs, true, &frame))
		return;
	u64 rflags = frame.rflags & ~RFLAGS_TF;
	bool written = vm->written;
	memory_write_virtual(vm, sregs, frame.flags_at, &rflags, frame.word);
	/* A handler's stack holds no tables. */
	vm->written = written;
}

static enum outcome at_flag_step(struct vcpu *vcpu, const struct armed *armed, struct kvm_regs *regs,
				 const struct kvm_sregs *sregs)
{
	struct vm *vm = vcpu->vm;
	struct exception_frame frame;
	if (regs->rip == armed->db_handler && guest_frame(vm, regs, sregs, false, &frame) && (frame.cs & 3) == 3) {
		struct kvm_debugregs debug;
		unwind(vcpu, &frame, frame.rip, &armed->before);
		if (!ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &debug)) {
			debug.dr6 &= ~(1ULL << 14);
			ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &debug);
		}
		return STEPPED;
	}
	if (regs->rip == armed->pf_handler) {
		clear_flag_in_frame(vm, regs, sregs);
		return vm->stops & STOP_GUEST_PF ? stop_at_page_fault(vcpu, regs, sregs) : STEPPED;
	}
	if (armed->syscall_entry && regs->rip == armed->syscall_entry)
		regs->r11 &= ~RFLAGS_TF;
	regs->rflags &= ~RFLAGS_TF;
	ioctl(vcpu->fd, KVM_SET_REGS, regs);
	return STEPPED;
}

/* Whether a debug exit is of what was armed, and not of what the guest does to itself. */
static bool is_ours(struct vcpu *vcpu, const struct armed *armed, const struct kvm_sregs *sregs, u64 rip)
{
	const struct kvm_debug_exit_arch *debug = &vcpu->run->debug.arch;
	if (debug->exception == VECTOR_BP) {
		const struct breakpoint *point = breakpoint_here(vcpu->vm, sregs, rip);
		return point && !point->hardware;
	}
	u64 hits = debug->dr6 & ((1ULL << armed->registers) - 1);
	return hits || ((debug->dr6 & DR6_SINGLE_STEP) && (armed->debug.control & KVM_GUESTDBG_SINGLESTEP));
}

/* The guest gets the exception that it has caused, with the next entry. */
static enum outcome give_to_guest(struct vcpu *vcpu, const struct armed *armed)
{
	struct kvm_guest_debug debug = armed->debug;
	debug.control |= KVM_GUESTDBG_ENABLE | (vcpu->run->debug.arch.exception == VECTOR_BP ? KVM_GUESTDBG_INJECT_BP :
												KVM_GUESTDBG_INJECT_DB);
	ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, &debug);
	return GO_ON;
}

static enum outcome at_bp_handler(struct vcpu *vcpu, const struct kvm_regs *regs, const struct kvm_sregs *sregs)
{
	struct vm *vm = vcpu->vm;
	struct exception_frame frame;
	const struct breakpoint *point = NULL;
	if (guest_frame(vm, regs, sregs, false, &frame))
		point = breakpoint_here(vm, sregs, frame.rip - 1);
	/* The guest's own int3: its handler runs. */
	if (!point || point->hardware)
		return STEPPED;
	unwind(vcpu, &frame, frame.rip - 1, NULL);
	return stop(vcpu, SIGNAL_TRAP, "reason=breakpoint,rip=%llx,completed=0", (unsigned long long)frame.rip - 1);
}

static enum outcome at_debug_exit(struct vcpu *vcpu, const struct armed *armed)
{
	struct vm *vm = vcpu->vm;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	get_state(vcpu, &regs, &sregs);
	if (armed->by_flag)
		return at_flag_step(vcpu, armed, &regs, &sregs);
	bool single = armed->debug.control & KVM_GUESTDBG_SINGLESTEP;
	if (!is_ours(vcpu, armed, &sregs, regs.rip))
		return give_to_guest(vcpu, armed);
	if (armed->pf_handler && regs.rip == armed->pf_handler) {
		/* KVM steps by the trap flag: the processor has pushed it. */
		if (single)
			clear_flag_in_frame(vm, &regs, &sregs);
		return vm->stops & STOP_GUEST_PF ? stop_at_page_fault(vcpu, &regs, &sregs) : STEPPED;
	}
	if (single && !breakpoint_here(vm, &sregs, regs.rip))
		return STEPPED;
	if (armed->bp_handler && regs.rip == armed->bp_handler && !breakpoint_here(vm, &sregs, regs.rip))
		return at_bp_handler(vcpu, &regs, &sregs);
	return stop(vcpu, SIGNAL_TRAP, "reason=breakpoint,rip=%llx,completed=0", regs.rip);
}

/* A hlt of ours: RIP is on it again. */
static enum outcome at_plant(struct vcpu *vcpu, const struct armed *armed, struct kvm_regs *regs,
			     const struct kvm_sregs *sregs)
{
	struct vm *vm = vcpu->vm;
	bool single = armed->debug.control & KVM_GUESTDBG_SINGLESTEP;
	struct exception_frame frame;
	if (armed->by_flag && is_among(armed->places, armed->place_count, regs->rip))
		return at_flag_step(vcpu, armed, regs, sregs);
	if (armed->pf_handler && regs->rip == armed->pf_handler) {
		/* KVM steps by the trap flag: the processor has pushed it. */
		if (single)
			clear_flag_in_frame(vm, regs, sregs);
		return vm->stops & STOP_GUEST_PF ? stop_at_page_fault(vcpu, regs, sregs) : STEPPED;
	}
	if (breakpoint_here(vm, sregs, regs->rip))
		return stop(vcpu, SIGNAL_TRAP, "reason=breakpoint,rip=%llx,completed=0", regs->rip);
	if (armed->bp_handler && regs->rip == armed->bp_handler)
		return at_bp_handler(vcpu, regs, sregs);
	if (armed->gp_handler && regs->rip == armed->gp_handler) {
		/* A step begins where nothing of ours is in. */
		if (!single && guest_frame(vm, regs, sregs, true, &frame) && (frame.cs & 3) &&
		    breakpoint_here(vm, sregs, frame.rip)) {
			frame.rflags &= ~RFLAGS_RF;
			unwind(vcpu, &frame, frame.rip, NULL);
			return stop(vcpu, SIGNAL_TRAP, "reason=breakpoint,rip=%llx,completed=0", (unsigned long long)frame.rip);
		}
		if (single)
			clear_flag_in_frame(vm, regs, sregs);
	}
	/* What another vCPU stops at, or an exception that the guest has made: its own instruction is to run. */
	return STEPPED;
}

/* Whether a hlt was ours, and not the guest's: then it has not been, and RIP is on it again. */
static bool take_halt_back(struct vcpu *vcpu)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct plant plant;
	get_state(vcpu, &regs, &sregs);
	if (!plant_here(vcpu->vm, &sregs, regs.rip - 1, &plant) || plant.byte != HLT || plant.lifted)
		return false;
	regs.rip--;
	return !ioctl(vcpu->fd, KVM_SET_REGS, &regs);
}

static enum outcome at_halt(struct vcpu *vcpu, const struct armed *armed)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	bool is_ours = take_halt_back(vcpu);
	get_state(vcpu, &regs, &sregs);
	if (is_ours)
		return at_plant(vcpu, armed, &regs, &sregs);
	return stop(vcpu, SIGNAL_TRAP, "reason=halt,rip=%llx,completed=1", regs.rip);
}

static void say(struct vm *vm, const void *bytes, size_t length)
{
	u64 one = 1;
	pthread_mutex_lock(&vm->lock);
	/* Nobody may be there to listen. */
	if (vm->console.length > MOST_CONSOLE)
		text_free(&vm->console);
	text_bytes(&vm->console, bytes, length);
	pthread_mutex_unlock(&vm->lock);
	if (write(vm->event, &one, 8) < 0)
		return;
}

static enum outcome at_port(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	u8 *data = (u8 *)run + run->io.data_offset;
	size_t length = (size_t)run->io.size * run->io.count;
	if (run->io.direction == KVM_EXIT_IO_IN) {
		memset(data, run->io.port == PORT_SERIAL_STATUS ? 0x60 : 0xff, length);
		return GO_ON;
	}
	switch (run->io.port) {
	case PORT_SERIAL:
		say(vcpu->vm, data, length);
		return GO_ON;
	case PORT_STOP: {
		u8 value = data[0];
		complete(vcpu);
		return stop(vcpu, SIGNAL_TRAP, "reason=port,access=write,port=%x,size=1,data=%x,completed=1,exact=port+data",
			    PORT_STOP, value);
	}
	case PORT_EXIT:
		vcpu->has_exited = true;
		vcpu->exit_code = data[0];
		return stop(vcpu, SIGNAL_TRAP, "reason=port,access=write,port=%x,size=1,data=%x,completed=1", PORT_EXIT,
			    data[0]);
	default:
		return GO_ON;
	}
}

static enum outcome at_mmio(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;
	struct kvm_run *run = vcpu->run;
	u64 gpa = run->mmio.phys_addr, data = 0;
	bool is_write = run->mmio.is_write;
	unsigned length = run->mmio.len;
	memcpy(&data, run->mmio.data, length < 8 ? length : 8);
	bool readonly = is_write && vm_slot_at(vm, gpa);
	if (!is_write)
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
	if (!(vm->stops & (readonly ? STOP_READ_ONLY : STOP_MMIO)))
		return GO_ON;
	vcpu->half_done = !is_write;
	if (!is_write)
		return stop(vcpu, SIGNAL_TRAP, "reason=mmio,access=read,gpa=%llx,size=%x,completed=0,exact=access+gpa+size",
			    (unsigned long long)gpa, length);
	complete(vcpu);
	return stop(vcpu, SIGNAL_TRAP,
		    "reason=%s,access=write,gpa=%llx,size=%x,data=%llx,completed=1,exact=access+gpa+size+data",
		    readonly ? "read-only" : "mmio", (unsigned long long)gpa, length, (unsigned long long)data);
}

static enum outcome at_internal_error(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	get_state(vcpu, &regs, &sregs);
	const struct breakpoint *point = breakpoint_here(vcpu->vm, &sregs, regs.rip);
	/* Where kernel code is emulated, int3 is an instruction that the emulator lacks. */
	if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION && point && !point->hardware)
		return stop(vcpu, SIGNAL_TRAP, "reason=breakpoint,rip=%llx,completed=0", regs.rip);
	if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
		return stop(vcpu, SIGNAL_ILL, "reason=emulation,rip=%llx,cpl=%u,completed=0", regs.rip, sregs.ss.dpl);
	return stop(vcpu, SIGNAL_ILL, "reason=error,rip=%llx,errno=%x,words=KVM reports internal error %u", regs.rip,
		    EIO, run->internal.suberror);
}

static enum outcome at_shutdown(struct vcpu *vcpu)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	get_state(vcpu, &regs, &sregs);
	const struct breakpoint *point = breakpoint_here(vcpu->vm, &sregs, regs.rip);
	if (point && !point->hardware)
		return stop(vcpu, SIGNAL_TRAP, "reason=breakpoint,rip=%llx,completed=0", regs.rip);
	/* On AMD KVM resets the vCPU at a shutdown: what it was is gone. */
	vcpu->was_reset = regs.rip == 0xfff0 && sregs.cs.base == 0xffff0000;
	if (vcpu->was_reset)
		return stop(vcpu, SIGNAL_SEGV, "reason=shutdown");
	return stop(vcpu, SIGNAL_SEGV, "reason=shutdown,rip=%llx,gva=%llx,cpl=%u,completed=0,derived=gva", regs.rip,
		    sregs.cr2, sregs.ss.dpl);
}

static enum outcome at_exit(struct vcpu *vcpu, const struct armed *armed)
{
	struct kvm_run *run = vcpu->run;
	struct memory_fault fault;
	switch (run->exit_reason) {
	case KVM_EXIT_DEBUG:
		return at_debug_exit(vcpu, armed);
	case KVM_EXIT_IO:
		return at_port(vcpu);
	case KVM_EXIT_MMIO:
		return at_mmio(vcpu);
	case KVM_EXIT_HLT:
		return at_halt(vcpu, armed);
	case KVM_EXIT_SHUTDOWN:
		return at_shutdown(vcpu);
	case KVM_EXIT_INTERNAL_ERROR:
		return at_internal_error(vcpu);
	case KVM_EXIT_DIRTY_RING_FULL:
		if (ring_harvest(vcpu))
			return GO_ON;
		/* An emulator that does not look between instructions writes past the end. */
		return stop(vcpu, SIGNAL_ILL, "reason=error,errno=%x,words=the dirty ring has overflowed and pages are lost: a larger --dirty-ring is needed",
			    EOVERFLOW);
	case KVM_EXIT_MEMORY_FAULT:
		memcpy(&fault, &run->hw, sizeof(fault));
		return stop(vcpu, SIGNAL_TRAP, "reason=memory-fault,gpa=%llx,size=%llx,data=%llx,completed=0,exact=gpa+size",
			    fault.gpa, fault.size, fault.flags);
	case KVM_EXIT_HYPERCALL:
		/* KVM_HC_MAP_GPA_RANGE alone comes here. KVM gives the guest this answer when the vCPU goes on. */
		run->hypercall.ret = 0;
		return stop(vcpu, SIGNAL_TRAP, "reason=hypercall,gpa=%llx,size=%llx,data=%llx,completed=0,exact=gpa+size",
			    run->hypercall.args[0], run->hypercall.args[1] * PAGE, run->hypercall.args[2]);
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		return GO_ON;
	case KVM_EXIT_FAIL_ENTRY:
		return stop(vcpu, SIGNAL_ILL, "reason=error,errno=%x,words=the processor refuses this vCPU's state (reason 0x%llx)",
			    EINVAL, run->fail_entry.hardware_entry_failure_reason);
	default:
		return stop(vcpu, SIGNAL_ILL, "reason=error,errno=%x,words=KVM exits for reason %u which this helper does not know",
			    ENOSYS, run->exit_reason);
	}
}

/* ---- running */

static enum outcome stop_held(struct vcpu *vcpu)
{
	struct held_fault held = vcpu->held;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	get_state(vcpu, &regs, &sregs);
	/* Let through, an instruction that KVM emulates has completed; one of the processor's may have, or may be about to. */
	const char *completed = !held.resolved			     ? ",completed=0" :
				vcpu->vm->emulates && !sregs.ss.dpl ? ",completed=1" :
								       "";
	return stop(vcpu, SIGNAL_TRAP, "reason=second-stage,access=%s,gpa=%llx,trap=%s,rip=%llx,cpl=%u%s,exact=gpa+trap%s%s,derived=cpl%s%s",
		    held.write ? "write" : "read", (unsigned long long)held.gpa, held.trap, regs.rip, sregs.ss.dpl, completed,
		    /* What does not write may be a fetch: userfaultfd does not say. */
		    held.write ? "+access" : "", held.resolved ? "" : "+rip", held.write ? "" : "+access",
		    held.resolved ? "+rip" : "");
}

static bool is_device_write(const struct kvm_run *run)
{
	return (run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write) ||
	       (run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT);
}

static enum outcome run_once(struct vcpu *vcpu, bool step)
{
	struct vm *vm = vcpu->vm;
	struct armed armed = { 0 };
	enum outcome outcome = GO_ON;
	if (vcpu->held.active)
		return stop_held(vcpu);
	if (vcpu->exit_pending) {
		/* It is judged as what it came from: a run. */
		arm_run(vcpu, &armed);
		vcpu->exit_pending = false;
		outcome = at_exit(vcpu, &armed);
		if (outcome != GO_ON)
			return outcome;
		armed = (struct armed){ 0 };
	}
	if (step)
		outcome = arm_step(vcpu, &armed);
	else
		arm_run(vcpu, &armed);
	if (outcome != GO_ON)
		return outcome;
	watch_places(vcpu, &armed);
	/* A step must be asked for anew each time: KVM ties it to where RIP is now. */
	bool single = armed.debug.control & KVM_GUESTDBG_SINGLESTEP;
	if (single || memcmp(&armed.debug, &vcpu->debug, sizeof(armed.debug))) {
		ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, &armed.debug);
		vcpu->debug = armed.debug;
	}
	/* Only now: KVM takes the flag out when it ends a single step of its own. */
	struct kvm_regs regs;
	if (armed.by_flag && !ioctl(vcpu->fd, KVM_GET_REGS, &regs)) {
		regs.rflags |= RFLAGS_TF;
		ioctl(vcpu->fd, KVM_SET_REGS, &regs);
	}
	while (outcome == GO_ON) {
		int error = 0;
		if (!enter(vcpu))
			break;
		error = ioctl(vcpu->fd, KVM_RUN, 0) ? errno : 0;
		leave(vcpu);
		pthread_mutex_lock(&vm->lock);
		bool held = vcpu->held.active;
		pthread_mutex_unlock(&vm->lock);
		if (held) {
			bool is_debug = !error && vcpu->run->exit_reason == KVM_EXIT_DEBUG;
			/* The end of a step is this stop itself. By the trap flag it has to be taken back first. */
			if (is_debug && armed.by_flag)
				at_debug_exit(vcpu, &armed);
			/* One of our own will come again. */
			bool is_halt = !error && vcpu->run->exit_reason == KVM_EXIT_HLT && take_halt_back(vcpu);
			vcpu->exit_pending = !error && !is_halt && !(is_debug && (single || armed.by_flag));
			outcome = stop_held(vcpu);
		} else if (error == EINTR || error == EAGAIN)
			outcome = armed.by_flag && now_ms() - vcpu->since > 200 ? STEPPED : GO_ON;
		else if (error == EFAULT && vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT)
			outcome = at_exit(vcpu, &armed);
		else if (error)
			outcome = stop(vcpu, SIGNAL_ILL, "reason=error,errno=%x,words=KVM_RUN: %s", error, strerror(error));
		else
			outcome = at_exit(vcpu, &armed);
		/* A write to a device completes without a trap after it: the step ends here. */
		if (outcome == GO_ON && !error && (single || armed.by_flag) && is_device_write(vcpu->run)) {
			complete(vcpu);
			outcome = STEPPED;
		}
	}
	/* Whatever ended a step by the flag, the flag is ours. */
	if (armed.by_flag && !ioctl(vcpu->fd, KVM_GET_REGS, &regs) && (regs.rflags & RFLAGS_TF)) {
		regs.rflags &= ~RFLAGS_TF;
		ioctl(vcpu->fd, KVM_SET_REGS, &regs);
	}
	return outcome;
}

/* One instruction, with the plant that may stand on it taken out for as long, alone. */
static enum outcome step_over(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct plant plant;
	get_state(vcpu, &regs, &sregs);
	if (!plant_here(vm, &sregs, regs.rip, &plant))
		return run_once(vcpu, true);
	freeze(vm, vcpu);
	plant_lift(vm, plant.gpa);
	enum outcome outcome = run_once(vcpu, true);
	plant_lower(vm, plant.gpa);
	thaw(vm);
	return outcome;
}

/* Whether a vCPU has come to a place that it was to stop at. */
static enum outcome look(struct vcpu *vcpu, bool asked)
{
	struct vm *vm = vcpu->vm;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	u64 handler;
	get_state(vcpu, &regs, &sregs);
	if ((vm->stops & STOP_GUEST_PF) && guest_pf_handler(vm, &sregs, &handler) && regs.rip == handler)
		return stop_at_page_fault(vcpu, &regs, &sregs);
	if (breakpoint_here(vm, &sregs, regs.rip))
		return stop(vcpu, SIGNAL_TRAP, "reason=breakpoint,rip=%llx,completed=0", regs.rip);
	if (asked && (regs.rip < vcpu->step_from || regs.rip >= vcpu->step_to))
		return stop(vcpu, SIGNAL_TRAP, "reason=step,rip=%llx", regs.rip);
	return GO_ON;
}

static bool stands_on_plant(struct vcpu *vcpu)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct plant plant;
	get_state(vcpu, &regs, &sregs);
	return plant_here(vcpu->vm, &sregs, regs.rip, &plant);
}

static void run_until_stop(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;
	bool first = true, pass = false;
	int hunted = 0;
	for (;;) {
		pthread_mutex_lock(&vm->lock);
		bool wanted = vcpu->stop_wanted;
		vcpu->recheck = false;
		pthread_mutex_unlock(&vm->lock);
		struct kvm_regs regs;
		struct kvm_sregs sregs;
		u64 handler;
		/* What stands where a step has come to and does not stop is not to be asked again. */
		bool step = vcpu->stepping || pass;
		if (wanted) {
			ioctl(vcpu->fd, KVM_GET_REGS, &regs);
			stop(vcpu, vcpu->vm->non_stop ? 0 : SIGNAL_INT, "reason=pause,rip=%llx", regs.rip);
			return;
		}
		if (first && (vm->stops & STOP_GUEST_PF || vm->has_breakpoints || step)) {
			get_state(vcpu, &regs, &sregs);
			if (breakpoint_here(vm, &sregs, regs.rip) ||
			    (vm->stops & STOP_GUEST_PF && guest_pf_handler(vm, &sregs, &handler) && regs.rip == handler) ||
			    (watches_hlt(vm) && guest_handler(vm, &sregs, VECTOR_GP, &handler) && regs.rip == handler))
				step = true;
		}
		bool hunting = false;
		if (!step && hunted < HUNT_STEPS && vm_watches_handlers(vm)) {
			get_state(vcpu, &regs, &sregs);
			hunting = sregs.ss.dpl == 0 && lacks_handlers(vm, &sregs);
			hunted++;
		}
		enum outcome outcome = step || hunting ? step_over(vcpu) : run_once(vcpu, false);
		/* Called away before the instruction ran: it is still to be passed. */
		if (outcome == GO_ON && step)
			continue;
		pass = outcome == STEPPED && (step || hunting);
		if (pass) {
			outcome = look(vcpu, vcpu->stepping);
			pass = outcome == GO_ON && stands_on_plant(vcpu);
		}
		else if (outcome == STEPPED)
			/* The guest's own exception: past the first instruction of its handler. */
			outcome = step_over(vcpu) == STOPPED ? STOPPED : GO_ON;
		if (outcome == STOPPED)
			return;
		first = false;
	}
}

static void *vcpu_main(void *argument)
{
	struct vcpu *vcpu = argument;
	struct vm *vm = vcpu->vm;
	sigset_t kick;
	sigemptyset(&kick);
	sigaddset(&kick, SIGUSR1);
	pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
	pthread_mutex_lock(&vm->lock);
	vcpu->tid = gettid();
	char name[16];
	snprintf(name, sizeof(name), "vcpu%d", vcpu->id);
	prctl(PR_SET_NAME, name);
	pthread_cond_broadcast(&vm->changed);
	for (;;) {
		while (vcpu->state != VCPU_RUNNING)
			pthread_cond_wait(&vm->changed, &vm->lock);
		pthread_mutex_unlock(&vm->lock);
		run_until_stop(vcpu);
		watch(vcpu, NULL, 0);
		u64 one = 1;
		pthread_mutex_lock(&vm->lock);
		vcpu->state = VCPU_STOPPED;
		vcpu->stop_wanted = false;
		vcpu->reported = false;
		pthread_cond_broadcast(&vm->changed);
		if (write(vm->event, &one, 8) < 0)
			continue;
	}
	return NULL;
}

/* ---- from outside */

static int vcpu_start(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;
	int error = pthread_create(&vcpu->thread, NULL, vcpu_main, vcpu);
	if (error)
		return fail(error, "vCPU %d: no thread: %s", vcpu->id, strerror(error));
	pthread_mutex_lock(&vm->lock);
	while (!vcpu->tid)
		pthread_cond_wait(&vm->changed, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
	return 0;
}

int vcpu_create(struct vm *vm, int id)
{
	struct vcpu *vcpu = calloc(1, sizeof(*vcpu));
	if (!vcpu)
		return fail(ENOMEM, "vCPU %d: no memory", id);
	*vcpu = (struct vcpu){ .vm = vm, .id = id, .state = VCPU_STOPPED, .reported = true, .signal = SIGNAL_TRAP };
	vcpu->fd = ioctl(vm->fd, KVM_CREATE_VCPU, id);
	if (vcpu->fd < 0) {
		int error = errno;
		free(vcpu);
		return fail(error, "KVM does not make vCPU %d: %s", id, strerror(error));
	}
	vcpu->run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED)
		return fail(errno, "vCPU %d: its kvm_run cannot be mapped: %s", id, strerror(errno));
	if (vm->dirty_ring) {
		vcpu->ring = mmap(NULL, vm->dirty_ring * sizeof(struct kvm_dirty_gfn), PROT_READ | PROT_WRITE, MAP_SHARED,
				  vcpu->fd, KVM_DIRTY_LOG_PAGE_OFFSET * (off_t)PAGE);
		if (vcpu->ring == MAP_FAILED)
			return fail(errno, "vCPU %d: its dirty ring cannot be mapped: %s", id, strerror(errno));
	}
	int error = vcpu_set_cpuid(vm->kvm, vcpu->fd);
	if (!error)
		error = set_long_mode(vcpu->fd, 0, 0, 0, 0, 0);
	if (error)
		return fail(-error, "vCPU %d: KVM refuses its registers: %s", id, strerror(-error));
	snprintf(vcpu->stop, sizeof(vcpu->stop), "reason=start");
	vm->vcpus[vm->vcpu_count++] = vcpu;
	return vcpu_start(vcpu);
}

int vcpu_resume(struct vcpu *vcpu, bool step, u64 from, u64 to)
{
	struct vm *vm = vcpu->vm;
	if (vcpu->was_reset)
		return fail(EPERM, "vCPU %d has shut down and KVM has reset it: it cannot go on", vcpu->id);
	if (vm->written && vm_is_shadow(vm)) {
		vm_quiesce(vm);
		int error = vm_refresh(vm);
		vm_unquiesce(vm);
		if (error)
			return error;
	}
	vm->written = false;
	pthread_mutex_lock(&vm->lock);
	struct held_fault held = vcpu->held;
	vcpu->held.active = false;
	if (vcpu->more_held) {
		vcpu->held = vcpu->more[0];
		vcpu->more_held--;
		memmove(vcpu->more, vcpu->more + 1, (size_t)vcpu->more_held * sizeof(vcpu->more[0]));
	}
	pthread_mutex_unlock(&vm->lock);
	if (held.active && !held.resolved)
		uffd_resolve(vm, &held);
	pthread_mutex_lock(&vm->lock);
	vcpu->half_done = false;
	vcpu->stepping = step;
	vcpu->step_from = from;
	vcpu->step_to = to;
	vcpu->since = now_ms();
	vcpu->state = VCPU_RUNNING;
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
	return 0;
}
