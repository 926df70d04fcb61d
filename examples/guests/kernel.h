/* What the example guests share: a console, descriptor tables, page tables. */
#ifndef KERNEL_H
#define KERNEL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

enum { PRESENT = 1, WRITABLE = 2, USER = 4, ACCESSED = 32, DIRTY = 64, LARGE = 128 };
#define NO_EXECUTE (1UL << 63)
#define FRAME 0x000ffffffffff000UL

/* What an exception leaves on the stack. */
struct frame {
	u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	u64 vector, error, rip, cs, rflags, rsp, ss;
};

/* Of each guest: what it does, and what it makes of an exception. */
void kernel_main(void);
void kernel_exception(struct frame *frame);

/* kernel.c */
void kernel_start(void);
void print(const char *text);
void print_hex(u64 value);
u64 *new_page(void);
/* The level-1 entry of an address; tables on the way are made, open to the user. */
u64 *entry_of(u64 address);
void give_to_user(u64 start, u64 end);

/* start.S */
void leave(int code) __attribute__((noreturn));
void enter_user(u64 rip, u64 rsp, u64 rdi, u64 rsi);
void return_from_user(void) __attribute__((noreturn));

static inline u64 read_cr0(void)
{
	u64 value;
	asm volatile("mov %%cr0, %0" : "=r"(value));
	return value;
}

static inline void write_cr0(u64 value)
{
	asm volatile("mov %0, %%cr0" : : "r"(value) : "memory");
}

static inline u64 read_cr2(void)
{
	u64 value;
	asm volatile("mov %%cr2, %0" : "=r"(value));
	return value;
}

static inline u64 read_cr3(void)
{
	u64 value;
	asm volatile("mov %%cr3, %0" : "=r"(value));
	return value;
}

static inline void invlpg(u64 address)
{
	asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}

#endif
