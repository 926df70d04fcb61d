/*
 * A very small user of /dev/kvm on arm64: makes a VM with a few memory slots, lets its one processor touch pages of
 * them, says GUEST-READY and lets the VM spin, so that KVM's stage-2 tables stay in memory and in use.
 *
 * No C library. Built by boot.mjs with
 *   aarch64-linux-gnu-gcc -O2 -static -nostdlib -ffreestanding -fno-pie -fno-stack-protector stage2.c -o stage2
 */
#include <asm/unistd.h>
#include <linux/kvm.h>
#include <stddef.h>

typedef __u64 u64;

static long call(long number, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	register u64 x8 asm("x8") = number;
	register u64 x0 asm("x0") = a;
	register u64 x1 asm("x1") = b;
	register u64 x2 asm("x2") = c;
	register u64 x3 asm("x3") = d;
	register u64 x4 asm("x4") = e;
	register u64 x5 asm("x5") = f;

	asm volatile("svc #0"
		     : "+r"(x0)
		     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
		     : "memory");
	return (long)x0;
}

static void say(const char *text)
{
	u64 length = 0;

	while (text[length])
		length++;
	call(__NR_write, 1, (u64)text, length, 0, 0, 0);
}

static void say_hex(u64 value)
{
	char digits[19] = "0x";
	int i;

	for (i = 0; i < 16; i++)
		digits[2 + i] = "0123456789abcdef"[value >> (60 - 4 * i) & 15];
	digits[18] = 0;
	say(digits);
}

static void fail(void)
{
	say("\nGUEST-FAILED\n");
	call(__NR_exit_group, 1, 0, 0, 0, 0, 0);
}

static long need(const char *what, long result)
{
	if (result < 0) {
		say("stage2: ");
		say(what);
		say(" failed: -");
		say_hex(-result);
		fail();
	}
	return result;
}

static long ioctl(const char *what, long fd, u64 request, u64 argument)
{
	return need(what, call(__NR_ioctl, fd, request, argument, 0, 0, 0));
}

#define KB(n) ((u64)(n) << 10)
#define MB(n) ((u64)(n) << 20)

#define CODE_IPA 0x40000000ull
/* No slot is here, so that a store ends KVM_RUN. */
#define DOORBELL_IPA 0x09000000ull

enum { HUGE = 1 };

static const struct {
	u64 ipa, size;
	__u32 flags;
	int advice;
} slots[] = {
	{ CODE_IPA, KB(64), 0, 0 },
	{ 0x80000000ull, MB(8), 0, HUGE },
	{ 0xc0000000ull, MB(1), KVM_MEM_READONLY, 0 },
	{ 0x100000000ull, MB(4), KVM_MEM_LOG_DIRTY_PAGES, HUGE },
	/* The upper half of the 40-bit space: the second of two first tables that lie side by side. */
	{ 0x8040200000ull, MB(2), 0, 0 },
	{ 0xffffe00000ull, MB(2), 0, HUGE },
};
#define SLOTS (sizeof(slots) / sizeof(slots[0]))

/* What the VM touches: `count` accesses, `stride` apart. The VM's code reads this table; a zero count ends it. */
struct touch {
	u64 ipa, stride, count, write;
};
static const struct touch touches[] = {
	{ 0x80000000ull, KB(4), 16, 1 },
	{ 0x80000000ull + MB(4), KB(256), 16, 0 },
	{ 0xc0000000ull, KB(8), 32, 0 },
	{ 0x100000000ull, KB(4), 24, 1 },
	{ 0x100000000ull + MB(2), KB(64), 8, 0 },
	{ 0x8040200000ull, KB(4), 5, 1 },
	{ 0x8040200000ull + KB(512), KB(12), 7, 0 },
	{ 0xfffff00000ull, KB(64), 16, 1 },
	{ 0, 0, 0, 0 },
};
#define TOUCHES_AT 0x2000

/* The VM starts here with its MMU off; x0 is the address of the table above, x1 the doorbell's, x2 the vectors'. */
asm(".pushsection .rodata\n"
    ".balign 4\n"
    ".globl vm_begin, vm_end, vm_exception_begin, vm_exception_end\n"
    "vm_begin:\n"
    "	msr	vbar_el1, x2\n"
    "1:	ldp	x2, x3, [x0]\n"
    "	ldp	x4, x5, [x0, #16]\n"
    "	add	x0, x0, #32\n"
    "	cbz	x4, 4f\n"
    "2:	ldr	x6, [x2]\n"
    "	cbz	x5, 3f\n"
    "	str	x4, [x2]\n"
    "3:	add	x2, x2, x3\n"
    "	subs	x4, x4, #1\n"
    "	b.ne	2b\n"
    "	b	1b\n"
    "4:	str	w4, [x1]\n"
    "5:	b	5b\n"
    "vm_end:\n"
    /* An exception of the VM: its syndrome and address go to the doorbell's neighbours. */
    "vm_exception_begin:\n"
    "	mrs	x6, esr_el1\n"
    "	mrs	x7, far_el1\n"
    "	mrs	x8, elr_el1\n"
    "	str	x6, [x1, #8]\n"
    "	str	x7, [x1, #8]\n"
    "	str	x8, [x1, #16]\n"
    "	b	.\n"
    "vm_exception_end:\n"
    ".popsection\n");
extern const unsigned char vm_begin[], vm_end[], vm_exception_begin[], vm_exception_end[];

#define VECTORS_AT 0x3000
#define SYNCHRONOUS 0x200 /* the vector of synchronous exceptions at the same level */

/* The compiler makes calls of this name out of loops and initial values. */
void *memset(void *to, int byte, unsigned long length)
{
	volatile unsigned char *p = to;

	while (length--)
		*p++ = byte;
	return to;
}

static void copy(u64 to, const void *from, u64 length)
{
	volatile unsigned char *p = (void *)to;
	const unsigned char *q = from;

	while (length--)
		*p++ = *q++;
}

static void set_register(long vcpu, u64 index, u64 value)
{
	struct kvm_one_reg one = {
		.id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | index,
		.addr = (u64)&value,
	};

	ioctl("KVM_SET_ONE_REG", vcpu, KVM_SET_ONE_REG, (u64)&one);
}

static u64 map(u64 size, int fd)
{
	/* PROT_READ | PROT_WRITE; MAP_SHARED, or MAP_PRIVATE | MAP_ANONYMOUS */
	return need("mmap", call(__NR_mmap, 0, size, 3, fd < 0 ? 0x22 : 0x01, fd, 0));
}

static u64 memory_of_slot(int number)
{
	/* At an address of the same offset into 2M as the IPA, otherwise there can be no 2M block in stage 2. */
	u64 block = MB(2);
	u64 memory = map(slots[number].size + block, -1);

	memory += (slots[number].ipa - memory) & (block - 1);
	if (slots[number].advice == HUGE) /* MADV_HUGEPAGE */
		call(__NR_madvise, memory, slots[number].size, 14, 0, 0, 0);
	return memory;
}

static void run(void)
{
	struct kvm_vcpu_init init = { 0 };
	struct kvm_run *state;
	long kvm, vm, vcpu, size;
	unsigned int i;

	/* AT_FDCWD, O_RDWR | O_CLOEXEC */
	kvm = need("open /dev/kvm", call(__NR_openat, -100, (u64)"/dev/kvm", 02 | 02000000, 0, 0, 0));
	vm = ioctl("KVM_CREATE_VM", kvm, KVM_CREATE_VM, 0);
	for (i = 0; i < SLOTS; i++) {
		struct kvm_userspace_memory_region region = {
			.slot = i,
			.flags = slots[i].flags,
			.guest_phys_addr = slots[i].ipa,
			.memory_size = slots[i].size,
			.userspace_addr = memory_of_slot(i),
		};

		if (slots[i].ipa == CODE_IPA) {
			copy(region.userspace_addr, vm_begin, vm_end - vm_begin);
			copy(region.userspace_addr + TOUCHES_AT, touches, sizeof(touches));
			copy(region.userspace_addr + VECTORS_AT + SYNCHRONOUS, vm_exception_begin,
			     vm_exception_end - vm_exception_begin);
		}
		ioctl("KVM_SET_USER_MEMORY_REGION", vm, KVM_SET_USER_MEMORY_REGION, (u64)&region);
	}
	vcpu = ioctl("KVM_CREATE_VCPU", vm, KVM_CREATE_VCPU, 0);
	ioctl("KVM_ARM_PREFERRED_TARGET", vm, KVM_ARM_PREFERRED_TARGET, (u64)&init);
	ioctl("KVM_ARM_VCPU_INIT", vcpu, KVM_ARM_VCPU_INIT, (u64)&init);
	size = ioctl("KVM_GET_VCPU_MMAP_SIZE", kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	state = (struct kvm_run *)map(size, vcpu);
	set_register(vcpu, KVM_REG_ARM_CORE_REG(regs.regs[0]), CODE_IPA + TOUCHES_AT);
	set_register(vcpu, KVM_REG_ARM_CORE_REG(regs.regs[1]), DOORBELL_IPA);
	set_register(vcpu, KVM_REG_ARM_CORE_REG(regs.regs[2]), CODE_IPA + VECTORS_AT);
	set_register(vcpu, KVM_REG_ARM_CORE_REG(regs.pc), CODE_IPA);

	for (;;) {
		ioctl("KVM_RUN", vcpu, KVM_RUN, 0);
		if (state->exit_reason == KVM_EXIT_MMIO && state->mmio.phys_addr == DOORBELL_IPA) {
			say("GUEST-READY\n");
			continue;
		}
		if (state->exit_reason == KVM_EXIT_MMIO && state->mmio.phys_addr == DOORBELL_IPA + 8) {
			say("stage2: exception in the VM, ESR, FAR or ELR ");
			say_hex(*(u64 *)state->mmio.data);
			say("\n");
			continue;
		}
		if (state->exit_reason == KVM_EXIT_MMIO)
			say_hex(*(u64 *)state->mmio.data);
		say("stage2: KVM_RUN ended with reason ");
		say_hex(state->exit_reason);
		fail();
	}
}

void _start(void)
{
	run();
}
