/* SPDX-License-Identifier: MIT */
/* The first state of a vCPU. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "helper.h"

int vcpu_set_cpuid(int kvm, int vcpu_fd)
{
	int error = 0;
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(cpuid->entries[0]));
	if (!cpuid)
		return -ENOMEM;
	cpuid->nent = 256;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) || ioctl(vcpu_fd, KVM_SET_CPUID2, cpuid))
		error = -errno;
	free(cpuid);
	return error;
}

/* A flat segment of 64-bit mode or of protected mode: base 0, no limit, of the privilege that its selector says. */
void set_flat_segment(struct kvm_segment *segment, u16 selector, bool code, bool is_64_bit)
{
	*segment = (struct kvm_segment){
		.limit = 0xffffffff,
		.selector = selector,
		.type = code ? 11 : 3,
		.present = 1,
		.dpl = selector & 3,
		.db = !code || !is_64_bit,
		.s = 1,
		.l = code && is_64_bit,
		.g = 1,
	};
}

int set_long_mode(int vcpu_fd, u64 rip, u64 rsp, u64 cr3, u64 rdi, int cpl)
{
	struct kvm_sregs sregs;
	if (ioctl(vcpu_fd, KVM_GET_SREGS, &sregs))
		return -errno;
	set_flat_segment(&sregs.cs, cpl == 3 ? 0x2b : 0x08, true, true);
	set_flat_segment(&sregs.ss, cpl == 3 ? 0x33 : 0x10, false, true);
	set_flat_segment(&sregs.ds, cpl == 3 ? 0x33 : 0x10, false, true);
	sregs.es = sregs.fs = sregs.gs = sregs.ds;
	sregs.tr = (struct kvm_segment){ .limit = 0x67, .selector = 0x18, .type = 11, .present = 1 };
	memset(&sregs.ldt, 0, sizeof(sregs.ldt));
	sregs.ldt.unusable = 1;
	memset(&sregs.idt, 0, sizeof(sregs.idt));
	memset(&sregs.gdt, 0, sizeof(sregs.gdt));
	sregs.cr0 = 0x80050033;
	sregs.cr3 = cr3;
	sregs.cr4 = 0x20;
	sregs.efer = 0xd00;
	if (ioctl(vcpu_fd, KVM_SET_SREGS, &sregs))
		return -errno;
	/* Interrupts are off; IOPL 3 lets user code reach the serial port and the stop port. */
	struct kvm_regs regs = { .rip = rip, .rsp = rsp, .rdi = rdi, .rflags = cpl == 3 ? 0x3002 : 0x2 };
	return ioctl(vcpu_fd, KVM_SET_REGS, &regs) ? -errno : 0;
}
