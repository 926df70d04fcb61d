/* Entry, descriptor tables, exceptions. The helper enters in 64-bit mode with the first 4G mapped to themselves. */
	.code64
	.text
	.globl	_start
_start:
	lgdt	gdt_pointer
	lidt	idt_pointer
	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movq	$kernel_stack_end, %rsp
	pushq	$0x08
	pushq	$1f
	lretq
1:	call	kernel_main
	xorl	%edi, %edi
/* void leave(int code): ends the machine. */
	.globl	leave
leave:
	movl	%edi, %eax
	outb	%al, $0xf4
	hlt
	jmp	leave

/* One entry point a vector, 16 bytes apart; all find the same frame on the stack. */
	.balign	16
	.globl	vectors
vectors:
	.set	vector, 0
	.rept	32
	.balign	16
	.if	vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21 && vector != 29 && vector != 30
	pushq	$0
	.endif
	pushq	$vector
	jmp	exception
	.set	vector, vector + 1
	.endr

	.globl	page_fault
	.set	page_fault, vectors + 16 * 14

exception:
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rbx
	pushq	%rbp
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, %rdi
	call	kernel_exception
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rbp
	popq	%rbx
	popq	%rdx
	popq	%rcx
	popq	%rax
	addq	$16, %rsp
	iretq

/* void enter_user(u64 rip, u64 rsp, u64 rdi, u64 rsi): runs user code until `return_from_user`. */
	.globl	enter_user
enter_user:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, saved_stack
	movq	%rdi, %rax
	movq	%rdx, %rdi
	movq	%rsi, %rbx
	movq	%rcx, %rsi
	pushq	$0x33
	pushq	%rbx
	pushq	$0x3002
	pushq	$0x2b
	pushq	%rax
	iretq
	.globl	return_from_user
return_from_user:
	movq	saved_stack, %rsp
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret

	.data
	.balign	16
gdt:	.quad	0
	.quad	0x00af9b000000ffff	/* 0x08: code, CPL0 */
	.quad	0x00cf93000000ffff	/* 0x10: data, CPL0 */
	.globl	tss_descriptor
tss_descriptor:
	.quad	0, 0			/* 0x18: TSS, filled in at run time: its address is not known to the assembler */
	.quad	0x00affb000000ffff	/* 0x28: code, CPL3 */
	.quad	0x00cff3000000ffff	/* 0x30: data, CPL3 */
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.quad	gdt
idt_pointer:
	.word	32 * 16 - 1
	.quad	idt
	.bss
	.balign	4096
	.globl	idt
idt:	.fill	32 * 16
	.globl	tss
tss:	.fill	128
saved_stack:
	.fill	8
	.balign	4096
	.fill	16384
kernel_stack_end:
	.fill	16384
	.globl	exception_stack_end
exception_stack_end:
