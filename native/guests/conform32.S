/*
 * The guest of `kvm-mmu conform` for 32-bit and PAE paging: like conform.S, and in protected mode.
 *
 * It leaves the 64-bit mode in which it is started, and runs without paging but for the access of a case: paging is turned on
 * for that, with the tables of the case, which have an identity mapping of the first 4M (the supervisor's, with this program)
 * and of the page at USER (the user's). adapter/conform/legacy.ts describes the records in a table.
 */

#define LOAD        0x100000
#define STACK       (LOAD + 0x3000)
#define USER        0x400000    /* the user's snippets, then a stack */
#define COUNT       0x600000
#define CASES       0x800000
#define RESULTS     0xa00000

/* A case, 64 bytes. */
#define C_CR0       0
#define C_CR3       4
#define C_CR4       8
#define C_EFER      12
#define C_EFLAGS    16
#define C_GVA       20
#define C_ACTION    24
#define C_USER      28
#define C_WIDE      32          /* entries have 8 bytes */
#define C_SLOT      36          /* where the two entries lie, the upper first */
#define C_ENTRY     48          /* and their values, 8 bytes each */
#define CASE_SIZE   64

/* A result, 64 bytes. */
#define R_VECTOR    0
#define R_ERROR     4
#define R_CR2       8
#define R_EIP       12
#define R_VALUE     16
#define R_ENTRY     24
#define RESULT_SIZE 64

#define NO_EXCEPTION 256
#define USER_DONE   (USER + 0x100)
#define USER_STACK  (USER + 0x1000)
#define MSR_EFER    0xc0000080
#define CR0_PG      0x80000000

	.code64
	.text
	.globl _start
_start:
	lgdt	LOAD + 0x60
	ljmp	*LOAD + 0x70

	.org	0x20
gdt:	.quad	0
	.quad	0x00cf9b000000ffff	/* 0x08: code, CPL0 */
	.quad	0x00cf93000000ffff	/* 0x10: data, CPL0 */
	.quad	0x0000890000000067 | (((LOAD + 0x80) & 0xffffff) << 16)	/* 0x18: TSS */
	.quad	0x00cffb000000ffff	/* 0x20: code, CPL3 */
	.quad	0x00cff3000000ffff	/* 0x28: data, CPL3 */
gdt_end:
	.org	0x60
	.word	gdt_end - gdt - 1
	.quad	LOAD + 0x20
	.org	0x70
	.long	LOAD + (start - _start)
	.word	0x08
	.org	0x78
idtr:	.word	32 * 8 - 1
	.long	LOAD + 0x200
	.org	0x80
tss:	.long	0
	.long	STACK
	.long	0x10
	.fill	92, 1, 0

	.org	0x200
	.set	vector, 0
	.rept	32
	.word	(LOAD + 0x400 + 16 * vector) & 0xffff, 0x08, 0x8e00, (LOAD + 0x400 + 16 * vector) >> 16
	.set	vector, vector + 1
	.endr

	.code32
/* One entry point a vector. EDI: the result; EAX: what the access has read. */
	.org	0x400
	.set	vector, 0
	.rept	32
	.balign	16
	movl	$vector, %ebp
	.if	vector == 8 || (vector >= 10 && vector <= 14) || vector == 17
	jmp	with_error
	.else
	jmp	without_error
	.endif
	.set	vector, vector + 1
	.endr

	.org	0x600
	.macro	access	end
	.balign	16
	movb	(%ebx), %al
	\end
	.balign	16
	movw	(%ebx), %ax
	\end
	.balign	16
	movl	(%ebx), %eax
	\end
	.balign	16
	movb	%dl, (%ebx)
	\end
	.balign	16
	movw	%dx, (%ebx)
	\end
	.balign	16
	movl	%edx, (%ebx)
	\end
	.endm

	access	"jmp done"
	.balign	16
	call	*%ebx
	jmp	done

start:
	/* Out of long mode: paging off, then LME and PAE. */
	movl	%cr0, %eax
	andl	$~CR0_PG, %eax
	movl	%eax, %cr0
	movl	$MSR_EFER, %ecx
	xorl	%eax, %eax
	xorl	%edx, %edx
	wrmsr
	movl	%eax, %cr4
	lidt	LOAD + 0x78
	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$STACK, %esp
	movl	$0x18, %eax
	ltr	%ax

	movl	$(LOAD + (user - _start)), %esi
	movl	$USER, %edi
	movl	$(user_end - user), %ecx
	rep movsb
	movl	$USER_DONE, USER_STACK

batch:
	movl	$CASES, %esi
	movl	$RESULTS, %edi
	cmpl	$0, COUNT
	jz	batch_done

next:
	.irp	n, 0, 1
	movl	C_SLOT + 4 * \n(%esi), %ebx
	movl	C_ENTRY + 8 * \n(%esi), %eax
	movl	%eax, (%ebx)
	cmpl	$0, C_WIDE(%esi)
	jz	1f
	movl	C_ENTRY + 8 * \n + 4(%esi), %eax
	movl	%eax, 4(%ebx)
1:
	.endr

	movl	$MSR_EFER, %ecx
	movl	C_EFER(%esi), %eax
	xorl	%edx, %edx
	wrmsr
	movl	C_CR3(%esi), %eax
	movl	%eax, %cr3
	movl	C_CR4(%esi), %eax
	movl	%eax, %cr4
	/* The result's address is needed while paging is on, and it lies beyond what is mapped. */
	movl	%edi, LOAD + 0x2000
	movl	%esi, LOAD + 0x2004
	movl	C_GVA(%esi), %ebx
	movl	C_ACTION(%esi), %ecx
	xorl	%eax, %eax
	movl	%eax, %cr2
	movl	$0xc3c3c3c3, %edx
	pushl	C_EFLAGS(%esi)
	pushl	C_USER(%esi)
	movl	C_CR0(%esi), %ebp
	movl	%ebp, %cr0		/* paging is on */
	popl	%ebp
	testl	%ebp, %ebp
	jne	1f
	popfl
	jmp	*%ecx
1:	popl	%ebp
	movl	$0x2b, %edi
	movl	%edi, %ds
	pushl	$0x2b
	pushl	$USER_STACK
	pushl	%ebp
	pushl	$0x23
	pushl	%ecx
	iretl

with_error:
	popl	%ecx
	jmp	1f
without_error:
	xorl	%ecx, %ecx
1:	popl	%edx
	jmp	2f
done:
	movl	$NO_EXCEPTION, %ebp
	xorl	%ecx, %ecx
	xorl	%edx, %edx
2:	movl	%cr0, %ebx
	andl	$~CR0_PG, %ebx
	movl	%ebx, %cr0		/* paging is off */
	movl	$0x10, %ebx
	movl	%ebx, %ds
	movl	LOAD + 0x2000, %edi
	movl	LOAD + 0x2004, %esi
	movl	$STACK, %esp
	pushl	$2
	popfl
	movl	%ebp, R_VECTOR(%edi)
	movl	%ecx, R_ERROR(%edi)
	movl	%edx, R_EIP(%edi)
	movl	%eax, R_VALUE(%edi)
	movl	%cr2, %eax
	movl	%eax, R_CR2(%edi)
	.irp	n, 0, 1
	movl	C_SLOT + 4 * \n(%esi), %ebx
	movl	(%ebx), %eax
	movl	%eax, R_ENTRY + 8 * \n(%edi)
	movl	$0, R_ENTRY + 8 * \n + 4(%edi)
	cmpl	$0, C_WIDE(%esi)
	jz	1f
	movl	4(%ebx), %eax
	movl	%eax, R_ENTRY + 8 * \n + 4(%edi)
1:
	.endr
	xorl	%eax, %eax
	.irp	n, 0, 1
	movl	C_SLOT + 4 * \n(%esi), %ebx
	movl	%eax, (%ebx)
	cmpl	$0, C_WIDE(%esi)
	jz	1f
	movl	%eax, 4(%ebx)
1:
	.endr
	addl	$CASE_SIZE, %esi
	addl	$RESULT_SIZE, %edi
	decl	COUNT
	jnz	next

batch_done:
	outb	%al, $0x4b
	jmp	batch

	.balign	16
user:
	access	"jmp user_done"
	.balign	16
	jmp	*%ebx			/* its `ret` finds USER_DONE on the stack */
	.org	user - _start + 0x100
user_done:
	ud2
user_end:
