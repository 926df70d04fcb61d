/* void user_access(u64 address, u64 kind): at CPL3; the stack is the end of this page. */
	.section .user, "awx"
	.code64
	.globl	user_access
user_access:
	cmpl	$1, %esi
	je	1f
	ja	2f
	movb	(%rdi), %al
	jmp	3f
1:	movb	$0xc3, (%rdi)
	jmp	3f
2:	call	*%rdi
3:	ud2
	.fill	512		/* the stack */
