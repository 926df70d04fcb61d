/*
 * By `ud2`: the number in RAX, arguments in RDI and RSI, the result in RAX. An exception, because every KVM delivers
 * those; `syscall` and `int` need VMX or SVM.
 */
#define CALL_EXIT 0
#define CALL_PRINT 1
#define CALL_PROTECT 2
#define CALL_UNMAP 3
