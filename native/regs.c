/* SPDX-License-Identifier: MIT */
/* Registers as gdb knows them. Their order here is that of the target description and of `g` packets. */
#include <errno.h>
#include <string.h>

#include "helper.h"

#define CORE(name) "<reg name=\"" name "\" bitsize=\"64\" type=\"int64\"/>"
#define SELECTOR(name) "<reg name=\"" name "\" bitsize=\"32\" type=\"int32\"/>"
#define STACK(name) "<reg name=\"" name "\" bitsize=\"80\" type=\"i387_ext\"/>"
#define FLOAT(name) "<reg name=\"" name "\" bitsize=\"32\" type=\"int\" group=\"float\"/>"
#define SYSTEM(name) "<reg name=\"" name "\" bitsize=\"64\" type=\"uint64\" group=\"system\"/>"

const char target_description[] =
	"<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target version=\"1.0\">"
	"<architecture>i386:x86-64</architecture>"
	"<feature name=\"org.gnu.gdb.i386.core\">"
	"<flags id=\"eflags\" size=\"4\"><field name=\"CF\" start=\"0\" end=\"0\"/><field name=\"PF\" start=\"2\" end=\"2\"/>"
	"<field name=\"AF\" start=\"4\" end=\"4\"/><field name=\"ZF\" start=\"6\" end=\"6\"/>"
	"<field name=\"SF\" start=\"7\" end=\"7\"/><field name=\"TF\" start=\"8\" end=\"8\"/>"
	"<field name=\"IF\" start=\"9\" end=\"9\"/><field name=\"DF\" start=\"10\" end=\"10\"/>"
	"<field name=\"OF\" start=\"11\" end=\"11\"/><field name=\"IOPL\" start=\"12\" end=\"13\"/>"
	"<field name=\"NT\" start=\"14\" end=\"14\"/><field name=\"RF\" start=\"16\" end=\"16\"/>"
	"<field name=\"AC\" start=\"18\" end=\"18\"/></flags>"
	CORE("rax") CORE("rbx") CORE("rcx") CORE("rdx") CORE("rsi") CORE("rdi")
	"<reg name=\"rbp\" bitsize=\"64\" type=\"data_ptr\"/><reg name=\"rsp\" bitsize=\"64\" type=\"data_ptr\"/>"
	CORE("r8") CORE("r9") CORE("r10") CORE("r11") CORE("r12") CORE("r13") CORE("r14") CORE("r15")
	"<reg name=\"rip\" bitsize=\"64\" type=\"code_ptr\"/>"
	"<reg name=\"eflags\" bitsize=\"32\" type=\"eflags\"/>"
	SELECTOR("cs") SELECTOR("ss") SELECTOR("ds") SELECTOR("es") SELECTOR("fs") SELECTOR("gs")
	STACK("st0") STACK("st1") STACK("st2") STACK("st3") STACK("st4") STACK("st5") STACK("st6") STACK("st7")
	FLOAT("fctrl") FLOAT("fstat") FLOAT("ftag") FLOAT("fiseg") FLOAT("fioff") FLOAT("foseg") FLOAT("fooff") FLOAT("fop")
	"</feature>"
	"<feature name=\"org.gnu.gdb.i386.segments\">"
	"<reg name=\"fs_base\" bitsize=\"64\" type=\"int\"/><reg name=\"gs_base\" bitsize=\"64\" type=\"int\"/>"
	"</feature>"
	"<feature name=\"org.kvm-mmu.system\">"
	SYSTEM("cr0") SYSTEM("cr2") SYSTEM("cr3") SYSTEM("cr4") SYSTEM("cr8") SYSTEM("efer") SYSTEM("k_gs_base")
	SYSTEM("idt_base") SYSTEM("idt_limit") SYSTEM("gdt_base") SYSTEM("gdt_limit") SYSTEM("tr_base") SYSTEM("tr_limit")
	"</feature></target>";

enum { GENERAL = 17, EFLAGS = GENERAL, SELECTORS, FIRST_STACK = SELECTORS + 6, FIRST_FLOAT = FIRST_STACK + 8,
       FIRST_BASE = FIRST_FLOAT + 8, FIRST_SYSTEM = FIRST_BASE + 2, COUNT = FIRST_SYSTEM + 13 };

#define MSR_KERNEL_GS_BASE 0xc0000102

/* What a `g` packet holds, without padding. */
struct __attribute__((packed)) layout {
	u64 general[GENERAL];
	u32 eflags;
	u32 selectors[6];
	u8 stack[8][10];
	u32 floats[8];
	u64 bases[2];
	u64 system[13];
};

size_t registers_size(void)
{
	return sizeof(struct layout);
}

int register_place(int number, size_t *offset, size_t *size)
{
	static const struct {
		int first;
		size_t offset;
		size_t size;
	} groups[] = {
		{ FIRST_SYSTEM, offsetof(struct layout, system), 8 }, { FIRST_BASE, offsetof(struct layout, bases), 8 },
		{ FIRST_FLOAT, offsetof(struct layout, floats), 4 },  { FIRST_STACK, offsetof(struct layout, stack), 10 },
		{ EFLAGS, offsetof(struct layout, eflags), 4 },	      { 0, 0, 8 },
	};
	if (number < 0 || number >= COUNT)
		return -EINVAL;
	for (size_t i = 0;; i++) {
		if (number >= groups[i].first) {
			*size = groups[i].size;
			*offset = groups[i].offset + (size_t)(number - groups[i].first) * *size;
			return 0;
		}
	}
}

static void general_places(struct kvm_regs *regs, __u64 *places[GENERAL])
{
	__u64 *order[GENERAL] = { &regs->rax, &regs->rbx, &regs->rcx, &regs->rdx, &regs->rsi, &regs->rdi,
				  &regs->rbp, &regs->rsp, &regs->r8,  &regs->r9,  &regs->r10, &regs->r11,
				  &regs->r12, &regs->r13, &regs->r14, &regs->r15, &regs->rip };
	memcpy(places, order, sizeof(order));
}

static void segment_places(struct kvm_sregs *sregs, struct kvm_segment *places[6])
{
	struct kvm_segment *order[6] = { &sregs->cs, &sregs->ss, &sregs->ds, &sregs->es, &sregs->fs, &sregs->gs };
	memcpy(places, order, sizeof(order));
}

/* The system registers that are plain 64-bit fields; the rest is handled by hand. */
static void system_places(struct kvm_sregs *sregs, __u64 *places[13])
{
	__u64 *order[13] = { &sregs->cr0, &sregs->cr2, &sregs->cr3,	 &sregs->cr4, &sregs->cr8,	&sregs->efer, NULL,
			     &sregs->idt.base, NULL, &sregs->gdt.base, NULL,	     &sregs->tr.base, NULL };
	memcpy(places, order, sizeof(order));
}

static int kernel_gs(struct vcpu *vcpu, u64 *value, bool write)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} msr = { .header.nmsrs = 1, .entry = { .index = MSR_KERNEL_GS_BASE, .data = *value } };
	if (ioctl(vcpu->fd, write ? KVM_SET_MSRS : KVM_GET_MSRS, &msr) != 1)
		return -EINVAL;
	*value = msr.entry.data;
	return 0;
}

int registers_read(struct vcpu *vcpu, u8 *bytes)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_fpu fpu;
	struct layout layout = { 0 };
	__u64 *general[GENERAL], *system[13];
	struct kvm_segment *segments[6];
	if (ioctl(vcpu->fd, KVM_GET_REGS, &regs) || ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
		return fail(errno, "the registers of vCPU %d cannot be read: %s", vcpu->id, strerror(errno));
	general_places(&regs, general);
	segment_places(&sregs, segments);
	system_places(&sregs, system);
	for (int i = 0; i < GENERAL; i++)
		layout.general[i] = *general[i];
	layout.eflags = (u32)regs.rflags;
	for (int i = 0; i < 6; i++)
		layout.selectors[i] = segments[i]->selector;
	if (!ioctl(vcpu->fd, KVM_GET_FPU, &fpu)) {
		for (int i = 0; i < 8; i++)
			memcpy(layout.stack[i], fpu.fpr[i], 10);
		/* The tag word has two bits a register: 0 in use, 3 empty. */
		u32 tags = 0;
		for (int i = 0; i < 8; i++)
			tags |= (fpu.ftwx >> i & 1 ? 0u : 3u) << (2 * i);
		const u32 floats[8] = { fpu.fcw, fpu.fsw, tags, (u32)(fpu.last_ip >> 32), (u32)fpu.last_ip,
					(u32)(fpu.last_dp >> 32), (u32)fpu.last_dp, fpu.last_opcode };
		memcpy(layout.floats, floats, sizeof(floats));
	}
	layout.bases[0] = sregs.fs.base;
	layout.bases[1] = sregs.gs.base;
	for (int i = 0; i < 13; i++) {
		if (system[i])
			layout.system[i] = *system[i];
	}
	u64 gs = 0;
	kernel_gs(vcpu, &gs, false);
	layout.system[6] = gs;
	layout.system[8] = sregs.idt.limit;
	layout.system[10] = sregs.gdt.limit;
	layout.system[12] = sregs.tr.limit;
	memcpy(bytes, &layout, sizeof(layout));
	return 0;
}

int registers_write(struct vcpu *vcpu, const u8 *bytes)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs, before;
	struct kvm_fpu fpu;
	struct layout layout, old;
	__u64 *general[GENERAL], *system[13];
	struct kvm_segment *segments[6];
	memcpy(&layout, bytes, sizeof(layout));
	int error = registers_read(vcpu, (u8 *)&old);
	if (error)
		return error;
	if (ioctl(vcpu->fd, KVM_GET_REGS, &regs) || ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
		return fail(errno, "the registers of vCPU %d cannot be read: %s", vcpu->id, strerror(errno));
	before = sregs;
	if (vcpu->half_done && layout.general[GENERAL - 1] != regs.rip)
		return fail(EBUSY, "the instruction at 0x%llx reads a device and is half done: step it, then rip can be written", regs.rip);
	general_places(&regs, general);
	segment_places(&sregs, segments);
	system_places(&sregs, system);
	for (int i = 0; i < 13; i++) {
		if (system[i])
			*system[i] = layout.system[i];
	}
	bool is_64_bit = sregs.efer & EFER_LMA;
	for (int i = 0; i < 6; i++) {
		/* Code of the other width needs another segment, which KVM checks. */
		bool widens = i == 0 && ((sregs.efer ^ before.efer) & EFER_LMA);
		if (layout.selectors[i] == old.selectors[i] && !widens)
			continue;
		if (layout.selectors[i] > 0xffff || (layout.selectors[i] & 3) % 3)
			return fail(EINVAL, "selector 0x%x: 16 bits, of privilege level 0 or 3, are possible",
				    layout.selectors[i]);
		set_flat_segment(segments[i], (u16)layout.selectors[i], i == 0, is_64_bit);
	}
	sregs.idt.limit = (u16)layout.system[8];
	sregs.gdt.limit = (u16)layout.system[10];
	sregs.tr.limit = (u32)layout.system[12];
	if (layout.bases[0] != old.bases[0])
		sregs.fs.base = layout.bases[0];
	if (layout.bases[1] != old.bases[1])
		sregs.gs.base = layout.bases[1];
	if (memcmp(&sregs, &before, sizeof(sregs)) && ioctl(vcpu->fd, KVM_SET_SREGS, &sregs))
		return fail(errno, "KVM refuses cr0 0x%llx, cr3 0x%llx, cr4 0x%llx, efer 0x%llx together: %s", sregs.cr0,
			    sregs.cr3, sregs.cr4, sregs.efer, strerror(errno));
	u64 gs = layout.system[6];
	if (gs != old.system[6] && kernel_gs(vcpu, &gs, true))
		return fail(EINVAL, "KVM refuses k_gs_base 0x%llx", (unsigned long long)gs);
	for (int i = 0; i < GENERAL; i++)
		*general[i] = layout.general[i];
	regs.rflags = layout.eflags;
	if (ioctl(vcpu->fd, KVM_SET_REGS, &regs))
		return fail(errno, "KVM refuses the registers: %s", strerror(errno));
	if (!memcmp(layout.stack, old.stack, sizeof(layout.stack) + sizeof(layout.floats)))
		return 0;
	if (ioctl(vcpu->fd, KVM_GET_FPU, &fpu))
		return fail(errno, "the floating-point registers cannot be read: %s", strerror(errno));
	for (int i = 0; i < 8; i++)
		memcpy(fpu.fpr[i], layout.stack[i], 10);
	fpu.fcw = (u16)layout.floats[0];
	fpu.fsw = (u16)layout.floats[1];
	fpu.ftwx = 0;
	for (int i = 0; i < 8; i++)
		fpu.ftwx |= (u8)(((layout.floats[2] >> (2 * i) & 3) != 3) << i);
	fpu.last_ip = (u64)layout.floats[3] << 32 | layout.floats[4];
	fpu.last_dp = (u64)layout.floats[5] << 32 | layout.floats[6];
	fpu.last_opcode = (u16)layout.floats[7];
	if (ioctl(vcpu->fd, KVM_SET_FPU, &fpu))
		return fail(errno, "KVM refuses the floating-point registers: %s", strerror(errno));
	return 0;
}
