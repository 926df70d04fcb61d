/*
 * A kernel with one user program: it maps pages on demand, copies a shared page when it is written, and takes pages
 * away again with invlpg. Its system calls edit page tables.
 */
#include "kernel.h"
#include "system-calls.h"

extern u64 user_start[], user_end[];
void program(void);

/* Where pages come by themselves when they are touched. */
#define HEAP 0x8100000000UL
#define HEAP_END 0x8100100000UL
#define STACK_END 0x8200000000UL

/* The one page of zeros that every page which was only read shares. */
static u64 zeros;

static void fatal(const struct frame *frame, u64 address)
{
	print("the program may not do this at ");
	print_hex(frame->rip);
	print(": address ");
	print_hex(address);
	print("\n");
	leave(1);
}

static void on_page_fault(const struct frame *frame)
{
	u64 address = read_cr2(), *entry = entry_of(address);
	int is_heap = address >= HEAP && address < HEAP_END;
	int is_stack = address >= STACK_END - 0x10000 && address < STACK_END;
	int is_write = frame->error & 2;
	if (!is_heap && !is_stack)
		fatal(frame, address);
	if (!(*entry & PRESENT) && !is_write)
		*entry = zeros | PRESENT | USER | NO_EXECUTE;
	else if (!(*entry & PRESENT) || (*entry & FRAME) == zeros)
		/* The first write: a page of its own, of zeros too. */
		*entry = (u64)new_page() | PRESENT | WRITABLE | USER | NO_EXECUTE;
	else
		fatal(frame, address);
	invlpg(address);
}

static u64 protect(u64 address, u64 writable)
{
	u64 *entry = entry_of(address);
	if (!(*entry & PRESENT))
		return 0;
	*entry = writable ? *entry | WRITABLE : *entry & ~(u64)WRITABLE;
	invlpg(address);
	return 1;
}

static u64 unmap(u64 address)
{
	u64 *entry = entry_of(address), was = *entry;
	*entry = 0;
	invlpg(address);
	return was;
}

void kernel_exception(struct frame *frame)
{
	char letter[2] = { 0 };
	if (frame->vector == 14) {
		on_page_fault(frame);
		return;
	}
	if (frame->vector != 6)
		fatal(frame, frame->rip);
	frame->rip += 2;
	switch (frame->rax) {
	case CALL_EXIT:
		return_from_user();
	case CALL_PRINT:
		letter[0] = (char)frame->rdi;
		print(letter);
		break;
	case CALL_PROTECT:
		frame->rax = protect(frame->rdi, frame->rsi);
		break;
	case CALL_UNMAP:
		frame->rax = unmap(frame->rdi);
		break;
	default:
		frame->rax = ~0UL;
	}
}

void kernel_main(void)
{
	kernel_start();
	zeros = (u64)new_page();
	enter_user((u64)program, STACK_END - 16, 0, 0);
	print("the program has ended\n");
}
