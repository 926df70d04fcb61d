#include "kernel.h"

extern u8 vectors[][16], kernel_end[];
extern u64 idt[][2], tss_descriptor[2], user_start[], user_end[];
extern u8 tss[], exception_stack_end[];

static u64 next_page;

static void gate(int vector, u64 address, int privilege)
{
	idt[vector][0] = (address & 0xffff) | 0x08UL << 16 | (0x8e00UL | (u64)privilege << 13) << 32 |
			 (address >> 16 & 0xffff) << 48;
	idt[vector][1] = address >> 32;
}

void kernel_start(void)
{
	u64 base = (u64)tss;
	/* The breakpoint exception is the user's too. */
	for (int vector = 0; vector < 32; vector++)
		gate(vector, (u64)vectors[vector], vector == 3 ? 3 : 0);
	tss_descriptor[0] = 0x67 | (base & 0xffffff) << 16 | 0x89UL << 40 | (base >> 24 & 0xff) << 56;
	tss_descriptor[1] = base >> 32;
	/* RSP0. */
	*(u64 *)(tss + 4) = (u64)exception_stack_end;
	asm volatile("ltr %w0" : : "r"(0x18));
	next_page = ((u64)kernel_end + ((u64)user_end - (u64)user_start) + 0xfff) & ~0xfffUL;
	give_to_user((u64)user_start, (u64)user_end);
}

void print(const char *text)
{
	for (; *text; text++)
		asm volatile("outb %0, %1" : : "a"(*text), "Nd"((u16)0x3f8));
}

void print_hex(u64 value)
{
	char text[19] = "0x", *at = text + 2;
	int digits = 1;
	while (digits < 16 && value >> 4 * digits)
		digits++;
	while (digits--)
		*at++ = "0123456789abcdef"[value >> 4 * digits & 15];
	print(text);
}

u64 *new_page(void)
{
	u64 *page = (u64 *)next_page;
	next_page += 4096;
	for (int i = 0; i < 512; i++)
		page[i] = 0;
	return page;
}

u64 *entry_of(u64 address)
{
	u64 *table = (u64 *)(read_cr3() & FRAME);
	for (int level = 4; level > 1; level--) {
		u64 *entry = &table[address >> (12 + 9 * (level - 1)) & 511];
		if (!(*entry & PRESENT))
			*entry = (u64)new_page();
		*entry |= PRESENT | WRITABLE | USER;
		table = (u64 *)(*entry & FRAME);
	}
	return &table[address >> 12 & 511];
}

void give_to_user(u64 start, u64 end)
{
	for (u64 address = start; address < end; address += 4096) {
		*entry_of(address) |= USER;
		invlpg(address);
	}
}
