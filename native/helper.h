/* SPDX-License-Identifier: MIT */
/* What the helper's files share. One process owns one virtual machine. */
#ifndef HELPER_H
#define HELPER_H

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "compat.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define PAGE 4096ULL
#define MAX_SLOTS 32
#define MAX_VCPUS 16
#define MAX_BREAKPOINTS 256
/* What a vCPU stops at by bytes in memory where debug registers are not honoured: breakpoints of hardware, and handlers. */
#define MAX_WATCHED 8
#define MAX_PLANTS (MAX_BREAKPOINTS + MAX_VCPUS * MAX_WATCHED)
/* Second-stage faults of one instruction beyond the first: it has two operands, each may cross a page. */
#define MORE_HELD 8
/* Debug registers for execution: DR0 … DR3. */
#define DEBUG_REGISTERS 4

#define CR0_PG (1ULL << 31)
#define CR4_PSE (1ULL << 4)
#define CR4_PAE (1ULL << 5)
#define CR4_LA57 (1ULL << 12)
#define EFER_LMA (1ULL << 10)
#define RFLAGS_TF (1ULL << 8)
#define RFLAGS_RF (1ULL << 16)

/* ---- text (text.c) */

/* A growing string; `failed` once memory ran out. */
struct text {
	char *at;
	size_t length;
	size_t room;
	bool failed;
};

void text_add(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_bytes(struct text *text, const void *bytes, size_t length);
void text_hex(struct text *text, const void *bytes, size_t length);
/* A JSON string with its quotes. */
void text_json(struct text *text, const char *words);
void text_free(struct text *text);

/* ---- the machine (vm.c) */

struct slot {
	bool used;
	u32 id;
	u64 gpa;
	u64 size;
	/* Where its memory begins in the memfd. */
	u64 offset;
	/* KVM_MEM_*. */
	u32 flags;
	/* KVM's mapping, which userfaultfd watches; and the helper's own, which it does not. */
	u8 *host;
	u8 *view;
	int private_fd;
	/* What is armed in each page (uffd.c); NULL while nothing ever was. */
	u8 *armed;
	/* Pages that a log had which is gone (dirty.c); a bit each, or NULL. */
	u64 *kept_log;
};

/* What may stop a vCPU, by QKvm.Stop. */
enum stop_kind {
	STOP_GUEST_PF = 1,
	STOP_SECOND_STAGE = 2,
	STOP_MMIO = 4,
	STOP_READ_ONLY = 8,
};

struct breakpoint {
	bool used;
	/* Software: a byte in memory. Hardware: a debug register, or what does its work. */
	bool hardware;
	u64 address;
	/* Where that byte lies. */
	u64 gpa;
};

enum { INT3 = 0xcc, HLT = 0xf4 };

/* A byte of ours in the guest's memory (plant.c). Clients do not see it. */
struct plant {
	u64 gpa;
	/* What stands there, and what it replaces. */
	u8 byte;
	u8 original;
	/* Breakpoints and vCPUs that want it there; with none the entry is free. */
	int users;
	/* It is out while the instruction that it replaces runs. */
	bool lifted;
};

/* What makes up a VM, by options. */
struct vm_options {
	struct {
		u32 id;
		u64 gpa;
		u64 size;
		/* KVM_MEM_*. */
		u32 flags;
	} slots[MAX_SLOTS];
	int slot_count;
	int vcpus;
	u32 dirty_ring;
	bool huge;
	bool populate;
	bool software_protected;
	const char *image;
	u64 image_gpa;
};

struct vcpu;

struct range {
	u64 start;
	u64 end;
};

struct vm {
	int kvm;
	int fd;
	int memfd;
	u64 memfd_size;
	/* Private memory. */
	struct range *private;
	int private_count;
	size_t run_size;
	struct slot slots[MAX_SLOTS];
	struct vcpu *vcpus[MAX_VCPUS];
	int vcpu_count;
	int max_phys_addr;
	/* As CPUID has them; the vendor's name has 12 letters. */
	bool pages_1g;
	/* A guest may run guests of its own, on nested tables. */
	bool svm;
	char cpu_vendor[13];
	u32 dirty_ring;
	bool huge;
	bool populate;
	bool dirty_manual;
	/* "ept", "npt" or "shadow". */
	const char *second_stage;
	/* Neither VMX nor SVM: KVM runs the guest's kernel in its instruction emulator. */
	bool emulates;
	/* enum stop_kind. */
	unsigned stops;
	/* The guest's #PF handler as the client knows it; 0: by its IDT. */
	u64 handler;
	/* Memory was written from outside the guest: a shadow MMU must be told before the guest goes on. */
	bool written;
	struct breakpoint breakpoints[MAX_BREAKPOINTS];
	/* Guards the plants; it may be taken while `lock` is held. */
	pthread_mutex_t plant_lock;
	struct plant plants[MAX_PLANTS];
	int plant_count;
	/* Guards what vCPU threads and the server share: states, stops, breakpoints. */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	/* Nobody may run but `solo`: to step over a plant that it took out, or while slots change. */
	bool frozen;
	struct vcpu *solo;
	bool non_stop;
	bool has_breakpoints;
	/* Written when a vCPU has stopped or has something to say. */
	int event;
	/* What the guest wrote to its serial port. */
	struct text console;
};

/*
 * Functions that can fail return 0 or a negative errno, and leave words for people here. Only the server's thread and
 * the start use it.
 */
extern char why[512];
int fail(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

int vm_create(struct vm *vm, const struct vm_options *options);
/* What a capability lacks, or "" when the host has it. Names are those of `has` in PROTOCOL.md. */
const char *vm_lacks(struct vm *vm, const char *capability);
extern const char *const capability_names[];
int vm_slot_add(struct vm *vm, u32 id, u64 gpa, u64 size, u32 flags);
int vm_slot_delete(struct vm *vm, u32 id);
int vm_slot_move(struct vm *vm, u32 id, u64 gpa);
int vm_slot_flags(struct vm *vm, u32 id, u32 flags);
struct slot *vm_slot(struct vm *vm, u32 id);
/* The slot that holds an address. */
struct slot *vm_slot_at(struct vm *vm, u64 gpa);
/* Deletes and adds every slot, so that KVM forgets what it built. No vCPU may be inside KVM_RUN. */
int vm_refresh(struct vm *vm);
/* What a host may do to memory: give it up, unmap it and keep what it holds, move it to other frames. */
int vm_discard(struct vm *vm, u64 gpa, u64 size);
int vm_unmap(struct vm *vm, u64 gpa, u64 size);
int vm_migrate(struct vm *vm, u64 gpa, u64 size);
struct slot *vm_slot_of_range(struct vm *vm, u64 gpa, u64 size);
/* Whether KVM builds shadow tables, which do not notice stores from outside the guest. */
bool vm_is_shadow(const struct vm *vm);

/* ---- private and shared memory (attributes.c) */

/* KVM_SET_MEMORY_ATTRIBUTES: memory becomes private or shared. */
int vm_attributes(struct vm *vm, u64 gpa, u64 size, bool is_private);
/* Gives back the frames that a slot's guest_memfd has for a range. */
int vm_punch(struct vm *vm, u64 gpa, u64 size);
/* How much of a range is shared, from its beginning. */
u64 vm_shared_length(const struct vm *vm, u64 gpa, u64 length);

/* ---- guest memory (memory.c) */

/* Reads or writes guest-physical memory; how many bytes could be. */
size_t memory_read(struct vm *vm, u64 gpa, void *bytes, size_t length);
size_t memory_write(struct vm *vm, u64 gpa, const void *bytes, size_t length);
/* Writes a byte of code, if there is memory: no table, so that shadow tables need not be told (`written`). */
void memory_patch(struct vm *vm, u64 gpa, u8 byte);
/* Translates a virtual address by a vCPU's registers, without regard to permissions. */
bool memory_translate(struct vm *vm, const struct kvm_sregs *sregs, u64 address, u64 *gpa);
size_t memory_read_virtual(struct vm *vm, const struct kvm_sregs *sregs, u64 address, void *bytes, size_t length);
size_t memory_write_virtual(struct vm *vm, const struct kvm_sregs *sregs, u64 address, const void *bytes,
			    size_t length);

/* ---- vCPUs (vcpu.c) */

enum run_state { VCPU_STOPPED, VCPU_RUNNING };

/* A fault that userfaultfd reported, and that holds its vCPU. */
struct held_fault {
	bool active;
	/* It has been resolved, so that an instruction that cannot be interrupted completes. */
	bool resolved;
	u64 gpa;
	bool write;
	const char *trap;
	/* Milliseconds of the monotonic clock when it was reported. */
	u64 since;
};

struct vcpu {
	struct vm *vm;
	int id;
	int fd;
	struct kvm_run *run;
	struct kvm_dirty_gfn *ring;
	u32 ring_next;
	/* Entries taken from the ring that nobody has asked for yet, as JSON. */
	struct text ring_taken;
	pthread_t thread;
	pid_t tid;
	enum run_state state;
	/* It is inside KVM_RUN, or about to be. */
	bool inside;
	/* It waits until others that change the machine are done: it looks at nothing and changes nothing. */
	bool parked;
	bool stepping;
	/* Steps end where RIP leaves these addresses; equal for a single step. */
	u64 step_from;
	u64 step_to;
	bool stop_wanted;
	bool recheck;
	/* The stop has been handed to the server's queue. */
	bool reported;
	int signal;
	/* `reason=…,…` of PROTOCOL.md. */
	char stop[256];
	struct held_fault held;
	/* Further ones of the same stay in the kernel, to be told one after the other. */
	struct held_fault more[MORE_HELD];
	int more_held;
	/* An exit of KVM_RUN that came together with a held fault, to be looked at when the vCPU goes on. */
	bool exit_pending;
	/* What KVM_SET_GUEST_DEBUG was told last. */
	struct kvm_guest_debug debug;
	/* Where bytes in memory stop it in place of debug registers, while it runs; only its own thread uses them. */
	u64 watched[MAX_WATCHED];
	int watched_count;
	/* It stands in the middle of an instruction that reads a device: KVM finishes that one first. */
	bool half_done;
	/* When it was resumed, in milliseconds. */
	u64 since;
	/* KVM has put it back to its first state, because it shut down. */
	bool was_reset;
	/* The guest wrote an exit code to the port that ends the machine. */
	bool has_exited;
	u8 exit_code;
};

int vcpu_create(struct vm *vm, int id);
/* Lets a stopped vCPU go on; with `step` for one instruction, and on while RIP is in [from, to). */
int vcpu_resume(struct vcpu *vcpu, bool step, u64 from, u64 to);
/* Makes a running vCPU stop soon. */
void vcpu_pause(struct vcpu *vcpu);
/* Gets a vCPU out of KVM_RUN. The lock is held. */
void vcpu_kick(struct vcpu *vcpu);
/* Whether stops depend on where the guest's exception handlers begin. */
bool vm_watches_handlers(struct vm *vm);
/* Runs something while no vCPU is inside KVM_RUN. */
void vm_quiesce(struct vm *vm);
void vm_unquiesce(struct vm *vm);
u64 now_ms(void);

/* Sets up a vCPU of any VM: CPUID as the host has it; 64-bit mode with paging at CPL 0 or 3. */
int vcpu_set_cpuid(int kvm, int vcpu_fd);
int set_long_mode(int vcpu_fd, u64 rip, u64 rsp, u64 cr3, u64 rdi, int cpl);
void set_flat_segment(struct kvm_segment *segment, u16 selector, bool code, bool is_64_bit);

/* ---- what KVM honours here (probe.c) */

/* At CPL3: single steps, and int3 as an exit. At CPL0: debug registers for execution, and int3. */
struct host_debug {
	bool user_step;
	bool user_int3;
	bool kernel_registers;
	bool kernel_int3;
};
const struct host_debug *host_debug(const struct vm *vm);

/* ---- stopping at things (debug.c) */

int breakpoint_insert(struct vm *vm, struct vcpu *vcpu, bool hardware, u64 address);
int breakpoint_remove(struct vm *vm, bool hardware, u64 address);
/* The host took memory away: a plant that is gone stands for what is there now. */
void breakpoint_keep_all(struct vm *vm);
void breakpoint_remove_all(struct vm *vm);
/* The one that stops code at a virtual address: a software one is the same in every address space that maps it. */
struct breakpoint *breakpoint_here(struct vm *vm, const struct kvm_sregs *sregs, u64 rip);

/* Puts a byte in place of an instruction, or counts one more who wants it: 0, or a negative errno without words. */
int plant_add(struct vm *vm, u64 gpa, u8 byte);
/* One less wants it. */
void plant_drop(struct vm *vm, u64 gpa);
/* The guest may have written over some: they stand for what is there now. Whether there were any. */
bool plants_keep(struct vm *vm);
/* Memory has been written from outside, whatever stood there. */
void plants_written(struct vm *vm, u64 gpa, size_t length);
/* The one on which a vCPU stands, as it is now. */
bool plant_here(struct vm *vm, const struct kvm_sregs *sregs, u64 rip, struct plant *copy);
/* Takes one out for a moment, and puts it back if it is still wanted. */
bool plant_lift(struct vm *vm, u64 gpa);
void plant_lower(struct vm *vm, u64 gpa);
/* Memory that was read, as the guest has it. */
void plants_hide(struct vm *vm, u64 gpa, u8 *bytes, size_t length);

/* Where the handler of a vector begins, by the guest's IDT. */
bool guest_handler(struct vm *vm, const struct kvm_sregs *sregs, int vector, u64 *address);
/* Where #PF goes: as told, else by the IDT. */
bool guest_pf_handler(struct vm *vm, const struct kvm_sregs *sregs, u64 *address);
/* The frame that an exception without or with an error code left on the stack. */
struct exception_frame {
	u64 error;
	u64 rip;
	u64 cs;
	u64 rflags;
	u64 rsp;
	u64 ss;
	/* Where the flags lie, and how many bytes they have. */
	u64 flags_at;
	unsigned word;
};
bool guest_frame(struct vm *vm, const struct kvm_regs *regs, const struct kvm_sregs *sregs, bool has_error,
		 struct exception_frame *frame);

/* ---- second-stage faults (uffd.c) */

int uffd_open(bool *minor, bool *write_protect);
int uffd_trap(struct vm *vm, u64 gpa, u64 size, bool write);
int uffd_untrap(struct vm *vm, u64 gpa, u64 size);
void uffd_untrap_all(struct vm *vm);
/* Takes what the kernel has to say. */
void uffd_read(struct vm *vm);
/* Lets the access that holds a vCPU happen. */
void uffd_resolve(struct vm *vm, struct held_fault *held);
/* Lets faults through whose vCPU could not be interrupted; how many are still waited for. */
int uffd_release_overdue(struct vm *vm);
extern int uffd_fd;

/* ---- dirty pages and statistics (dirty.c, stats.c) */

/* Takes a vCPU's dirty ring into what `qKvm.DirtyRing` will tell; whether there was anything. */
bool ring_harvest(struct vcpu *vcpu);
int ring_take(struct vcpu *vcpu, struct text *json);
/* Takes a slot's log before KVM is made to forget the slot. */
void dirty_keep(struct vm *vm, struct slot *slot);
int dirty_log(struct vm *vm, u32 id, struct text *json);
int dirty_manual(struct vm *vm, bool on);
int dirty_clear(struct vm *vm, u32 id, u64 first, u64 count);
int stats_json(struct vm *vm, struct text *json);

/* ---- what KVM has built (tables.c) */

/* Why it cannot be read here; "" when it can. */
const char *tables_lacks(void);
int tables_json(struct vm *vm, struct text *json);

/* ---- violations that tracepoints tell of (trace.c) */

/* What the host lacks, or "". */
const char *trace_lacks(void);
/* Begins to record what the machine's vCPUs do, all of which exist; ends it, and nothing is left in tracefs. */
int trace_on(struct vm *vm);
int trace_off(void);
/* What was recorded since the last time, as PROTOCOL.md has it. */
int trace_take(struct vm *vm, struct text *json);

/* ---- registers (regs.c) */

extern const char target_description[];
/* Bytes of all registers in a `g` packet. */
size_t registers_size(void);
int registers_read(struct vcpu *vcpu, u8 *bytes);
int registers_write(struct vcpu *vcpu, const u8 *bytes);
int register_place(int number, size_t *offset, size_t *size);

/* ---- images (image.c) */

int image_load(struct vm *vm, const char *path, u64 gpa);

/* ---- the protocol (serve.c, server.c, vendor.c) */

/* Serves clients until the machine is to end. `listen_path`: a Unix socket; NULL: standard input and output. */
int serve(struct vm *vm, const char *listen_path);
/* Handles a packet of PROTOCOL.md's table. 1: `reply` is the answer; 0: unknown; else a negative errno. */
int vendor_packet(struct vm *vm, const char *packet, struct text *reply);
/* Reads hexadecimal digits; moves `at` behind them. */
bool parse_hex(const char **at, u64 *value);

#endif
