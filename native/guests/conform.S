/*
 * The guest of `kvm-mmu conform`: runs an array of accesses through page tables by itself, with one exit a batch.
 *
 * The host writes CASES and COUNT and resumes; the guest runs every case, writes RESULTS, and does `out %al, $0x4b`. The
 * records and the map of memory are shared with adapter/conform/encode.ts, which describes them in a table.
 *
 * It runs at CPL0 from an identity mapping of its own in PML4 entry 0, which no case uses. All of that is the supervisor's,
 * executable, writable, with A and D set, so that neither WP, SMEP, SMAP nor NXE of a case hinder it, and no case's A and D
 * bits are mixed up with its own. The exception: the 2M page at USER is the user's. What runs at CPL3 stands there.
 *
 * A case stores its entries itself: KVM's shadow pages need not see what the host writes into tables, but they see this.
 */

#define LOAD        0x100000    /* this program */
#define PML4        0x200000    /* the root of every case; entry 0 is this program's */
#define OWN_PDPT    0x201000
#define OWN_PD      0x202000    /* 2M pages, 1G in all */
#define USER        0x400000    /* the user's 2M page: snippets, then a stack */
#define COUNT       0x600000
#define CASES       0x800000
#define RESULTS     0xa00000

#define SUPERVISOR  0x63        /* P W A D */
#define USERS       0x67        /* P W U A D */
#define PS          0x80

/* A case, 128 bytes. */
#define C_CR0       0
#define C_CR4       8
#define C_EFER      16
#define C_RFLAGS    24
#define C_GVA       32
#define C_ACTION    40          /* address of the snippet */
#define C_USER      48          /* 1: at CPL3 */
#define C_SLOT      56          /* where the four entries lie, from the root's down */
#define C_ENTRY     88          /* and their values */
#define CASE_SIZE   128

/* A result, 64 bytes. */
#define R_VECTOR    0           /* u32; 256: the access was made at CPL0 and nothing came of it */
#define R_ERROR     4           /* u32; 0 where the exception has none */
#define R_CR2       8
#define R_RIP       16
#define R_VALUE     24          /* RAX after the access: what a read has read */
#define R_ENTRY     32          /* the four entries afterwards */
#define RESULT_SIZE 64

#define NO_EXCEPTION 256
#define USER_DONE   (USER + 0x100)
#define USER_STACK  (USER + 0x1000)
#define MSR_EFER    0xc0000080

	.code64
	.text
	.globl _start
_start:
	jmp	start

/* Data that the processor reads. */
	.org	0x10
gdt:	.quad	0
	.quad	0x00af9b000000ffff	/* 0x08: code, CPL0 */
	.quad	0x00cf93000000ffff	/* 0x10: data, CPL0 */
	.quad	0x0000890000000067 | (((LOAD + 0x80) & 0xffffff) << 16)	/* 0x18: TSS */
	.quad	0
	.quad	0x00affb000000ffff	/* 0x28: code, CPL3 */
	.quad	0x00cff3000000ffff	/* 0x30: data, CPL3 */
gdt_end:
	.org	0x50
gdtr:	.word	gdt_end - gdt - 1
	.quad	LOAD + 0x10
idtr:	.word	32 * 16 - 1
	.quad	LOAD + 0x200
	.org	0x80
tss:	.long	0
	.quad	LOAD + 0x3000		/* RSP0 */
	.fill	92, 1, 0

	.org	0x200
	.set	vector, 0
	.rept	32
	.word	(LOAD + 0x400 + 16 * vector) & 0xffff, 0x08, 0x8e00, (LOAD + 0x400 + 16 * vector) >> 16
	.quad	0
	.set	vector, vector + 1
	.endr

/* One entry point a vector, 16 bytes apart. RAX holds what the access has read. */
	.org	0x400
	.set	vector, 0
	.rept	32
	.balign	16
	.if	vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
	movl	$vector, R_VECTOR(%rdi)
	jmp	with_error
	.else
	movl	$vector, R_VECTOR(%rdi)
	jmp	without_error
	.endif
	.set	vector, vector + 1
	.endr

/* What a case does at CPL0; the snippets' first instruction makes the access. RBX: the address; RDX: what a write stores. */
	.org	0x600
	.macro	access	end
	.balign	16
	movb	(%rbx), %al
	\end
	.balign	16
	movw	(%rbx), %ax
	\end
	.balign	16
	movl	(%rbx), %eax
	\end
	.balign	16
	movq	(%rbx), %rax
	\end
	.balign	16
	movb	%dl, (%rbx)
	\end
	.balign	16
	movw	%dx, (%rbx)
	\end
	.balign	16
	movl	%edx, (%rbx)
	\end
	.balign	16
	movq	%rdx, (%rbx)
	\end
	.endm

	access	"jmp done"
	.balign	16
	call	*%rbx			/* the page holds `ret`s */
	jmp	done

start:
	lgdt	LOAD + 0x50
	lidt	LOAD + 0x5a
	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$LOAD + 0x3000, %esp
	pushq	$0x08
	pushq	$1f
	lretq
1:	movl	$0x18, %eax
	ltr	%ax

	/* Its own tables. */
	movq	$OWN_PDPT | USERS, PML4
	movq	$OWN_PD | USERS, OWN_PDPT
	movl	$OWN_PD, %edi
	movl	$SUPERVISOR | PS, %eax
1:	movq	%rax, (%rdi)
	addq	$8, %rdi
	addl	$0x200000, %eax
	cmpl	$0x40000000, %eax
	jb	1b
	orq	$4, OWN_PD + 8 * (USER / 0x200000)

	movl	$user, %esi
	movl	$USER, %edi
	movl	$(user_end - user), %ecx
	rep movsb
	movq	$USER_DONE, USER_STACK

	movl	$PML4, %eax
	movq	%rax, %cr3

batch:
	movl	$CASES, %esi
	movl	$RESULTS, %edi
	movq	COUNT, %rbp
	testq	%rbp, %rbp
	jz	batch_done

next:
	movq	C_CR0(%rsi), %rax
	movq	%rax, %cr0
	movq	C_CR4(%rsi), %rax
	movq	%rax, %cr4
	movl	$MSR_EFER, %ecx
	movl	C_EFER(%rsi), %eax
	xorl	%edx, %edx
	wrmsr

	.irp	n, 0, 8, 16, 24
	movq	C_SLOT + \n(%rsi), %rbx
	movq	C_ENTRY + \n(%rsi), %rax
	movq	%rax, (%rbx)
	.endr

	movq	C_GVA(%rsi), %rbx
	movq	%cr3, %rax
	movq	%rax, %cr3
	invlpg	(%rbx)			/* for global pages */
	xorl	%eax, %eax
	movq	%rax, %cr2
	movabsq	$0xc3c3c3c3c3c3c3c3, %rdx
	cmpb	$0, C_USER(%rsi)
	jne	1f
	pushq	C_RFLAGS(%rsi)
	popfq
	jmp	*C_ACTION(%rsi)
1:	pushq	$0x33
	pushq	$USER_STACK
	pushq	C_RFLAGS(%rsi)
	pushq	$0x2b
	pushq	C_ACTION(%rsi)
	iretq

with_error:
	popq	%rcx
	movl	%ecx, R_ERROR(%rdi)
	jmp	1f
without_error:
	movl	$0, R_ERROR(%rdi)
1:	popq	%rcx
	movq	%rcx, R_RIP(%rdi)
	jmp	2f
done:
	movq	$NO_EXCEPTION, R_VECTOR(%rdi)
	movq	$0, R_RIP(%rdi)
2:	movq	%rax, R_VALUE(%rdi)
	movq	%cr2, %rax
	movq	%rax, R_CR2(%rdi)
	movl	$LOAD + 0x3000, %esp
	.irp	n, 0, 8, 16, 24
	movq	C_SLOT + \n(%rsi), %rbx
	movq	(%rbx), %rax
	movq	%rax, R_ENTRY + \n(%rdi)
	.endr
	/* No entry outlives its case. Two of them may be one: they are read before any is cleared. */
	xorl	%eax, %eax
	.irp	n, 0, 8, 16, 24
	movq	C_SLOT + \n(%rsi), %rbx
	movq	%rax, (%rbx)
	.endr
	addq	$CASE_SIZE, %rsi
	addq	$RESULT_SIZE, %rdi
	decq	%rbp
	jnz	next

batch_done:
	outb	%al, $0x4b
	jmp	batch

/* What a case does at CPL3, copied to USER. It comes back by #UD. */
	.balign	16
user:
	access	"jmp user_done"
	.balign	16
	jmp	*%rbx			/* its `ret` finds USER_DONE on the stack */
	.org	user - _start + 0x100
user_done:
	ud2
user_end:
