/*
 * Walks through each kind of page fault: an entry is set, an access is made, the handler says what came and mends the
 * entry, and the access runs again. Then the accesses that only the hypervisor sees.
 */
#include "kernel.h"

#define PLACE 0x10000000000UL
#define RESERVED (1UL << 51)
#define CR4_SMEP (1UL << 20)
#define CR4_SMAP (1UL << 21)
#define MMIO 0xe0000000UL
#define ROM 0xf0000000UL

enum { READ, WRITE, EXECUTE };

extern u8 user_access[], user_end[];

/* The access to come, and what the handler shall put into its entry. */
static u64 *entry;
static volatile u64 mended;
static volatile int faults;

static const char *const kinds[] = { "read", "write", "execute" };

void kernel_exception(struct frame *frame)
{
	/* `ud2`: the user's part is done. */
	if (frame->vector == 6 && frame->cs & 3)
		return_from_user();
	if (frame->vector != 14) {
		print("exception ");
		print_hex(frame->vector);
		print(" at ");
		print_hex(frame->rip);
		print("\n");
		leave(1);
	}
	print("    #PF, error code ");
	print_hex(frame->error);
	print(", cr2 ");
	print_hex(read_cr2());
	print("\n");
	if (++faults > 100)
		leave(2);
	*entry = mended;
	invlpg(read_cr2());
}

static void access(int kind, u64 address)
{
	volatile u8 *at = (volatile u8 *)address;
	if (kind == READ)
		(void)*at;
	else if (kind == WRITE)
		*at = 0xc3;
	else
		((void (*)(void))address)();
}

/* A page whose first byte is `ret`, so that it can be executed too. */
static u64 page_of_returns(void)
{
	u64 *page = new_page();
	page[0] = 0xc3c3c3c3c3c3c3c3;
	return (u64)page;
}

static void lesson(const char *name, int kind, int user, u64 bits, u64 mended_bits)
{
	u64 address = PLACE, page = page_of_returns();
	print(name);
	print(user ? ": CPL3 " : ": CPL0 ");
	print(kinds[kind]);
	print("\n");
	entry = entry_of(address);
	*entry = bits ? page | bits : 0;
	mended = page | mended_bits;
	invlpg(address);
	int before = faults;
	if (user)
		enter_user((u64)user_access, (u64)user_end, address, (u64)kind);
	else
		access(kind, address);
	if (faults == before)
		print("    no fault\n");
	*entry = 0;
	invlpg(address);
}

/* Sets bits of CR4 that not every processor has, if this one does. */
static int try_cr4(u64 bits)
{
	u32 a = 7, b, c = 0, d;
	asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	u64 known = (b & 1 << 7 ? CR4_SMEP : 0) | (b & 1 << 20 ? CR4_SMAP : 0);
	u64 cr4;
	asm volatile("mov %%cr4, %0" : "=r"(cr4));
	if ((bits & known) != bits)
		return 0;
	asm volatile("mov %0, %%cr4" : : "r"(cr4 | bits));
	return 1;
}

void kernel_main(void)
{
	const u64 full = PRESENT | WRITABLE | USER;
	kernel_start();

	lesson("not present", READ, 0, 0, PRESENT);
	lesson("not present", WRITE, 0, 0, PRESENT | WRITABLE);
	lesson("not present", EXECUTE, 0, 0, PRESENT);
	lesson("not present", READ, 1, 0, full);
	lesson("not present", WRITE, 1, 0, full);
	lesson("not present", EXECUTE, 1, 0, full);

	lesson("read-only, CR0.WP = 1", WRITE, 0, PRESENT, PRESENT | WRITABLE);
	write_cr0(read_cr0() & ~0x10000UL);
	lesson("read-only, CR0.WP = 0", WRITE, 0, PRESENT, PRESENT | WRITABLE);
	write_cr0(read_cr0() | 0x10000UL);
	lesson("read-only", WRITE, 1, PRESENT | USER, full);

	lesson("the supervisor's", READ, 1, PRESENT | WRITABLE, full);
	lesson("the supervisor's", WRITE, 1, PRESENT | WRITABLE, full);
	lesson("the supervisor's", EXECUTE, 1, PRESENT | WRITABLE, full);

	lesson("no-execute", EXECUTE, 0, PRESENT | NO_EXECUTE, PRESENT);
	lesson("no-execute", EXECUTE, 1, full | NO_EXECUTE, full);

	lesson("a reserved bit", READ, 0, PRESENT | RESERVED, PRESENT);
	lesson("a reserved bit", WRITE, 1, full | RESERVED, full);

	if (try_cr4(CR4_SMEP))
		lesson("SMEP: the user's page", EXECUTE, 0, full, PRESENT);
	else
		print("SMEP: not on this processor\n");
	if (try_cr4(CR4_SMAP))
		lesson("SMAP: the user's page", READ, 0, full, PRESENT);
	else
		print("SMAP: not on this processor\n");

	print("no fault of the guest's: a device's register, read and written\n");
	access(READ, MMIO);
	access(WRITE, MMIO);
	print("no fault of the guest's: read-only memory, written\n");
	access(WRITE, ROM);
	print("faults: ");
	print_hex((u64)faults);
	print("\n");
}
