/*
 * A guest in protected mode: built twice, for 32-bit paging and, with PAE defined, for PAE paging. It reads a page that is not
 * present, writes one that is read-only, and lets its user read one that is the supervisor's; the handler then maps the page.
 */
#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_CODE   0x1b
#define USER_DATA   0x23
#define TASK        0x28

#define TOP         0x200000    /* page directory, or the four PDPTEs */
#define TABLE       0x201000    /* page table of what lies at 4M */
#define DIRECTORY   0x202000    /* PAE: page directory */
#define USER        0x400000    /* the user's code and stack */
#define READ_ONLY   0x401000
#define MISSING     0x402000
#define SUPERVISORS 0x403000

#define P           1
#define W           2
#define U           4
#define PS          0x80
#define MSR_EFER    0xc0000080

#ifdef PAE
#define ENTRY       8
#define CR4_PAGING  0x20        /* PAE */
#else
#define ENTRY       4
#define CR4_PAGING  0x10        /* PSE */
#endif

	.macro	function name
	.globl	\name
	.type	\name, @function
\name:
	.endm

	.text
	.code64
function _start
	lgdt	gdt_pointer
	ljmp	*protected_pointer
	.size	_start, . - _start

	.code32
/* Out of long mode: paging off, then LME and PAE. */
function protected
	movl	%cr0, %eax
	andl	$0x7fffffff, %eax
	movl	%eax, %cr0
	movl	$MSR_EFER, %ecx
	xorl	%eax, %eax
	xorl	%edx, %edx
	wrmsr
	movl	$CR4_PAGING, %eax
	movl	%eax, %cr4
	movl	$KERNEL_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$stack_end, %esp
	lidt	idt_pointer
	movl	$TASK, %eax
	ltr	%ax
	xorl	%ebp, %ebp
	call	main
	outb	%al, $0xf4
	.size	protected, . - protected

function main
	pushl	%ebp
	movl	%esp, %ebp
	call	copy_user
	call	turn_paging_on
	call	read_missing
	call	write_read_only
	call	enter_user
	xorl	%eax, %eax
	popl	%ebp
	ret
	.size	main, . - main

function copy_user
	movl	$user, %esi
	movl	$USER, %edi
	movl	$(user_end - user), %ecx
	rep movsb
	ret
	.size	copy_user, . - copy_user

function turn_paging_on
#ifdef PAE
	movl	$(DIRECTORY + P), TOP
	movl	$(P + W + PS), DIRECTORY
	movl	$(0x200000 + P + W + PS), DIRECTORY + ENTRY
	movl	$(TABLE + P + W + U), DIRECTORY + 2 * ENTRY
#else
	movl	$(P + W + PS), TOP
	movl	$(TABLE + P + W + U), TOP + ENTRY
#endif
	movl	$(USER + P + W + U), TABLE
	movl	$(READ_ONLY + P), TABLE + ENTRY
	movl	$(SUPERVISORS + P + W), TABLE + 3 * ENTRY
	movl	$TOP, %eax
	movl	%eax, %cr3
	movl	%cr0, %eax
	orl	$0x80010000, %eax	/* PG, WP */
	movl	%eax, %cr0
	ret
	.size	turn_paging_on, . - turn_paging_on

function read_missing
	pushl	%ebp
	movl	%esp, %ebp
	movl	MISSING, %eax
	popl	%ebp
	ret
	.size	read_missing, . - read_missing

function write_read_only
	pushl	%ebp
	movl	%esp, %ebp
	movl	$0x1234, %ebx
	movl	%ebx, READ_ONLY
	popl	%ebp
	ret
	.size	write_read_only, . - write_read_only

/* Comes back when the user makes its system call. */
function enter_user
	pushl	%ebp
	movl	%esp, %ebp
	movl	%esp, task + 4
	pushl	$USER_DATA
	pushl	$(USER + 0x1000)
	pushl	$2
	pushl	$USER_CODE
	pushl	$USER
	iretl
	.globl	system_call
system_call:
	movl	task + 4, %esp
	popl	%ebp
	ret
	.size	enter_user, . - enter_user

/* Maps the page, for everybody. */
function page_fault
	pushl	%eax
	pushl	%ebx
	movl	%cr2, %eax
	movl	%eax, %ebx
	andl	$0xfffff000, %ebx
	shrl	$12, %eax
	andl	$3, %eax
	orl	$(P + W + U), %ebx
	movl	%ebx, TABLE(, %eax, ENTRY)
	movl	%cr2, %eax
	invlpg	(%eax)
	popl	%ebx
	popl	%eax
	addl	$4, %esp
	iretl
	.size	page_fault, . - page_fault

function unexpected
	movb	$1, %al
	outb	%al, $0xf4
	.size	unexpected, . - unexpected

/* The user's program, which is copied. */
user:
	movl	SUPERVISORS, %eax
	int	$0x80
user_end:

	.data
	.balign	16
gdt:	.quad	0
	.quad	0x00cf9b000000ffff	/* code, CPL0 */
	.quad	0x00cf93000000ffff	/* data, CPL0 */
	.quad	0x00cffb000000ffff	/* code, CPL3 */
	.quad	0x00cff3000000ffff	/* data, CPL3 */
	.word	103, task_low, 0x8900 + task_middle, 0
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.quad	gdt
protected_pointer:
	.long	protected
	.word	KERNEL_CODE

	.balign	16
	.globl	task
task:	.long	0
	.long	stack_end
	.long	KERNEL_DATA
	.fill	92, 1, 0

idt_pointer:
	.word	0x81 * 8 - 1
	.long	idt

	.balign	16
	.macro	gate	handler, type
	.word	\handler\()_low, KERNEL_CODE, \type, handlers_high
	.endm
idt:	.fill	14 * 8, 1, 0
	gate	page_fault, 0x8e00
	.fill	(0x80 - 15) * 8, 1, 0
	gate	system_call, 0xee00

	.bss
	.balign	16
	.fill	4096, 1, 0
stack_end:

	.section .note.GNU-stack, "", @progbits
