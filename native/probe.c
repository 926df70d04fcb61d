/* SPDX-License-Identifier: MIT */
/*
 * What KVM here can stop at. Guests run in hardware on most hosts; where KVM emulates them, some of its debugging is not
 * honoured, and nothing says so: a small VM finds out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "helper.h"

/* Pages of the probe's guest: four tables, then code. */
enum { TABLES = 0, CODE = 4, PAGES = 8 };
#define CODE_AT (CODE * PAGE)

struct probe {
	int vm;
	int vcpu;
	struct kvm_run *run;
	size_t run_size;
	u8 *memory;
};

static void close_probe(struct probe *probe)
{
	if (probe->run)
		munmap(probe->run, probe->run_size);
	if (probe->vcpu >= 0)
		close(probe->vcpu);
	if (probe->vm >= 0)
		close(probe->vm);
	if (probe->memory)
		munmap(probe->memory, PAGES * PAGE);
}

/* A guest with every page its user's and no IDT, which runs code at a privilege level. */
static bool open_probe(const struct vm *vm, struct probe *probe, int cpl, const u8 *code, size_t length)
{
	*probe = (struct probe){ .vm = -1, .vcpu = -1, .run_size = vm->run_size };
	probe->memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (probe->memory == MAP_FAILED) {
		probe->memory = NULL;
		return false;
	}
	probe->vm = ioctl(vm->kvm, KVM_CREATE_VM, 0);
	if (probe->vm < 0)
		return false;
	struct kvm_userspace_memory_region region = { .memory_size = PAGES * PAGE,
						      .userspace_addr = (u64)(uintptr_t)probe->memory };
	ioctl(probe->vm, KVM_SET_TSS_ADDR, 0xfffbd000UL);
	if (ioctl(probe->vm, KVM_SET_USER_MEMORY_REGION, &region))
		return false;
	probe->vcpu = ioctl(probe->vm, KVM_CREATE_VCPU, 0);
	if (probe->vcpu < 0 || vcpu_set_cpuid(vm->kvm, probe->vcpu))
		return false;
	probe->run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, probe->vcpu, 0);
	if (probe->run == MAP_FAILED) {
		probe->run = NULL;
		return false;
	}
	u64 *tables = (u64 *)probe->memory;
	for (int level = 0; level < 3; level++)
		tables[512 * level] = (u64)(level + 1) * PAGE | 7;
	for (u64 page = 0; page < PAGES; page++)
		tables[512 * 3 + page] = page * PAGE | 7;
	memcpy(probe->memory + CODE_AT, code, length);
	return !set_long_mode(probe->vcpu, CODE_AT, (CODE + 2) * PAGE, TABLES, 0, cpl);
}

/* The exit reason of the first run. Where nothing stops the code its `out` does. */
static int probe_once(const struct vm *vm, int cpl, const u8 *code, size_t length, const struct kvm_guest_debug *debug)
{
	struct probe probe;
	int result = -1;
	if (open_probe(vm, &probe, cpl, code, length) && !ioctl(probe.vcpu, KVM_SET_GUEST_DEBUG, debug)) {
		do
			result = ioctl(probe.vcpu, KVM_RUN, 0) ? -errno : (int)probe.run->exit_reason;
		while (result == -EINTR);
	}
	close_probe(&probe);
	return result;
}

static struct host_debug found;
static const struct vm *asked;

static void find_out(void)
{
	static const u8 nops[] = { 0x90, 0x90, 0xe6, 0x4b };
	static const u8 int3[] = { 0xcc, 0xe6, 0x4b };
	const struct kvm_guest_debug step = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };
	const struct kvm_guest_debug software = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP };
	/* At the second instruction. */
	const struct kvm_guest_debug hardware = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP,
						  .arch.debugreg = { [0] = CODE_AT + 1, [7] = 2 } };
	found.user_step = probe_once(asked, 3, nops, sizeof(nops), &step) == KVM_EXIT_DEBUG;
	found.user_int3 = probe_once(asked, 3, int3, sizeof(int3), &software) == KVM_EXIT_DEBUG;
	/* Only what is seen not to stop is done in another way: past the breakpoint, or into an IDT that is not there. */
	found.kernel_registers = probe_once(asked, 0, nops, sizeof(nops), &hardware) != KVM_EXIT_IO;
	int exit = probe_once(asked, 0, int3, sizeof(int3), &software);
	found.kernel_int3 = exit != KVM_EXIT_IO && exit != KVM_EXIT_SHUTDOWN;
}

const struct host_debug *host_debug(const struct vm *vm)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	asked = vm;
	pthread_once(&once, find_out);
	return &found;
}
