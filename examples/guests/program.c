/* The user's program: reads and writes memory that the kernel gives it page by page. */
#include "system-calls.h"

typedef unsigned long u64;
#define HEAP ((volatile u64 *)0x8100000000UL)
#define PAGE_WORDS 512

static u64 call(u64 number, u64 first, u64 second)
{
	u64 result = number;
	asm volatile("ud2" : "+a"(result) : "D"(first), "S"(second) : "memory");
	return result;
}

static void say(const char *text)
{
	for (; *text; text++)
		call(CALL_PRINT, (u64)*text, 0);
}

static u64 sum(int pages)
{
	u64 total = 0;
	for (int page = 0; page < pages; page++)
		total += HEAP[page * PAGE_WORDS];
	return total;
}

void program(void)
{
	say("read eight pages: ");
	say(sum(8) == 0 ? "all zero\n" : "not zero\n");

	for (int page = 0; page < 8; page += 2)
		HEAP[page * PAGE_WORDS] = 1;
	say("wrote every other: ");
	say(sum(8) == 4 ? "they count 4\n" : "wrong\n");

	call(CALL_PROTECT, (u64)HEAP, 0);
	say("page 0 is read-only: ");
	say(HEAP[0] == 1 ? "it still reads 1\n" : "wrong\n");
	call(CALL_PROTECT, (u64)HEAP, 1);
	HEAP[0] = 2;

	call(CALL_UNMAP, (u64)HEAP, 0);
	say("page 0 was taken away: ");
	say(HEAP[0] == 0 ? "it reads 0 again\n" : "a stale translation\n");
	call(CALL_EXIT, 0, 0);
}
