/*
 * What scenario.S is for long mode, for vCPUs with 32-bit and PAE paging: 32-bit code at the same places, and actions with the same
 * numbers. The host has set ESP too, to this vCPU's own stack, and data segments that both privilege levels may use.
 *
 * In: ESI the action, EBX its address, ECX:EDX its value, EDI EFLAGS, EBP the user's stack, 0 for CPL0. Out: AL 0xff, or the
 * vector of an exception with its error code in EDX and EIP in ESI; ECX what was read.
 */
	.code32
	.text
	.globl	_start
_start:
report:
	outb	%al, $0x4b
	testl	%ebp, %ebp
	jnz	1f
	pushl	%edi
	popfl
	jmp	*%esi
1:	pushl	$0x33
	pushl	%ebp
	pushl	%edi
	pushl	$0x2b
	pushl	%esi
	iretl

done:
	movl	%eax, %ecx
	movb	$0xff, %al
	jmp	settle

exception:
	movl	%eax, %ecx
	popl	%eax
	popl	%edx
	popl	%esi
settle:
	pushl	$2
	popfl
	jmp	report

/* A vCPU begins here, with the selector of its TSS in CX: QEMU's processor takes no exception from CPL3 by a TSS that KVM has set. */
	.org	0x80
	ltr	%cx
	movb	$0xff, %al
	jmp	report

/* Exceptions: 16 bytes each. */
	.org	0x100
	.set	vector, 0
	.rept	32
	.balign	16
	.if	vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21 && vector != 29 && vector != 30
	pushl	$0
	.endif
	pushl	$vector
	jmp	exception
	.set	vector, vector + 1
	.endr

	.macro	accesses end
	.irp	instruction, "movb (%ebx), %al", "movw (%ebx), %ax", "movl (%ebx), %eax", "ud2"
	.balign	16
	\instruction
	jmp	\end
	.endr
	.irp	instruction, "movb %dl, (%ebx)", "movw %dx, (%ebx)", "movl %edx, (%ebx)"
	.balign	16
	\instruction
	jmp	\end
	.endr
	.endm

/* Actions: 16 bytes each. A fetch finds a `ret`, which the host has put there. */
	.org	0x400
	accesses done
	.balign	16
	jmp	write_8
	.balign	16
	call	*%ebx
	jmp	done
	.balign	16
	movl	%ebx, %cr0
	jmp	done
	.balign	16
	movl	%ebx, %cr3
	jmp	done
	.balign	16
	movl	%ebx, %cr4
	jmp	done
	.balign	16
	invlpg	(%ebx)
	jmp	done
	.balign	16
	jmp	write_efer
	.balign	16
	ud2				/* WRPKRU: long mode's */
	.balign	16
write_efer:
	movl	%ebx, %eax
	xorl	%edx, %edx
	movl	$0xc0000080, %ecx
	wrmsr
	jmp	done
/* An entry of 8 bytes in one store, as kernels with PAE write theirs. */
write_8:
	movl	%ebx, %edi
	movl	%edx, %ebx
	movl	(%edi), %eax
	movl	4(%edi), %edx
1:	cmpxchg8b (%edi)
	jne	1b
	jmp	done

/* The user's page: the same accesses, and back by `ud2`, an exception that arrives on every KVM. */
	.org	0x1000
	ud2
	.org	0x1400
	accesses _start + 0x1000
	.balign	16
	ud2
	.balign	16
	jmp	*%ebx
	.org	0x2000
