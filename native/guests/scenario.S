/*
 * What a scenario's vCPUs run on KVM: one action after the other, each chosen by the host in registers, and an
 * `out %al, $0x4b` when it is done. Two pages, wherever the host maps them (adapter/scenario-kvm/stubs.ts): the first is the
 * supervisor's, the second the user's. The host has set the GDT, the IDT, TR and R15.
 *
 * In: RSI the action, RBX its address, RDX its value, RCX its pages, R12 RFLAGS, R13 whether at CPL3, R11 the user's stack, R15 this
 * vCPU's own stack. Out: AL 0xff, 0xfe when a guest of this one has exited, or the vector of an exception with its error code in R9 and RIP in R10; R8 what was read.
 */
	.code64
	.text
	.globl	_start
_start:
report:
	outb	%al, $0x4b
	testl	%r13d, %r13d
	jnz	1f
	pushq	%r12
	popfq
	jmp	*%rsi
1:	pushq	$0x33
	pushq	%r11
	pushq	%r12
	pushq	$0x2b
	pushq	%rsi
	iretq

done:
	movq	%rax, %r8
	movb	$0xff, %al
	jmp	settle

exception:
	movq	%rax, %r8
	popq	%rax
	popq	%r9
	popq	%r10
	movq	%r15, %rsp
settle:
	pushq	$2
	popfq
	jmp	report

/* Exceptions: 16 bytes each. */
	.org	0x100
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

	.macro	accesses end
	.irp	instruction, "movb (%rbx), %al", "movw (%rbx), %ax", "movl (%rbx), %eax", "movq (%rbx), %rax"
	.balign	16
	\instruction
	jmp	\end
	.endr
	.irp	instruction, "movb %dl, (%rbx)", "movw %dx, (%rbx)", "movl %edx, (%rbx)", "movq %rdx, (%rbx)"
	.balign	16
	\instruction
	jmp	\end
	.endr
	.endm

/* Actions: 16 bytes each. A fetch finds a `ret`, which the host has put there. */
	.org	0x400
	accesses done
	.balign	16
	call	*%rbx
	jmp	done
	.balign	16
	movq	%rbx, %cr0
	jmp	done
	.balign	16
	movq	%rbx, %cr3
	jmp	done
	.balign	16
	movq	%rbx, %cr4
	jmp	done
	.balign	16
	invlpg	(%rbx)
	jmp	done
	.balign	16
	jmp	write_efer
	.balign	16
	jmp	write_pkru
	.balign	16
	jmp	run_guest
	.balign	16
	vmmcall
	jmp	done
	.irp	instruction, vmmcall, vmcall
	.balign	16
	movl	$12, %eax	/* KVM_HC_MAP_GPA_RANGE: RBX an address, RCX so many pages, RDX what they become */
	\instruction
	jmp	done
	.endr
	.balign	16
write_efer:
	movl	$0xc0000080, %ecx
	movl	%ebx, %eax
	movq	%rbx, %rdx
	shrq	$32, %rdx
	wrmsr
	jmp	done
write_pkru:
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	movl	%ebx, %eax
	.byte	0x0f, 0x01, 0xef	/* wrpkru */
	jmp	done

/*
 * A guest of the guest's runs the same code, and tells the host of its actions by itself. What brings it out leads to 0xfe.
 * RBX and RDX are physical addresses of its VMCB, and of the page in which the processor may keep this state.
 */
run_guest:
	movl	$0xc0010117, %ecx	/* VM_HSAVE_PA */
	movl	%edx, %eax
	shrq	$32, %rdx
	wrmsr
	movq	%rbx, %rax
	vmrun
	stgi
	movb	$0xfe, %al
	jmp	settle

/* The user's page: the same accesses, and back by `ud2`, an exception that arrives on every KVM. */
	.org	0x1000
	ud2
	.org	0x1400
	accesses _start + 0x1000
	.balign	16
	jmp	*%rbx
	.org	0x2000
