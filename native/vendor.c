/* SPDX-License-Identifier: MIT */
/* Packets beyond the standard protocol: KVM's own matters. PROTOCOL.md lists them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "events.h"
#include "helper.h"
#include "instance.h"

bool parse_hex(const char **at, u64 *value)
{
	const char *start = *at;
	u64 found = 0;
	for (;; (*at)++) {
		char c = **at;
		int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
		if (digit < 0)
			break;
		if (found >> 60)
			return false;
		found = found << 4 | (u64)digit;
	}
	*value = found;
	return *at > start;
}

/* `1000,2000`: exactly `count` numbers; with `rest`, a comma and text behind them. */
static int numbers(const char *text, u64 *values, int count, const char **rest)
{
	const char *at = text;
	for (int i = 0; i < count; i++) {
		if ((i && *at++ != ',') || !parse_hex(&at, &values[i]))
			return fail(EINVAL, "“%s” should be %d hexadecimal numbers with commas between them", text, count);
	}
	if (rest && *at == ',')
		*rest = at + 1;
	else if (*at)
		return fail(EINVAL, "“%s”: what is “%s”?", text, at);
	else if (rest)
		*rest = "";
	return 0;
}

static void hex_json(struct text *json, const char *name, u64 value)
{
	text_add(json, ",\"%s\":\"0x%llx\"", name, (unsigned long long)value);
}

static void flag_words(struct text *json, u32 flags)
{
	text_add(json, ",\"flags\":\"%s", flags & KVM_MEM_READONLY ? "ro" : "");
	if (flags & KVM_MEM_LOG_DIRTY_PAGES)
		text_add(json, "%slog", flags & KVM_MEM_READONLY ? "+" : "");
	if (flags & KVM_MEM_GUEST_MEMFD)
		text_add(json, "%sprivate", flags & (KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES) ? "+" : "");
	text_add(json, "\"");
}

/* The kernel's own number of its boot: a client with the same one is on this machine. */
static const char *boot_id(void)
{
	static char id[64];
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? 0 : read(fd, id, sizeof(id) - 1);
	if (fd >= 0)
		close(fd);
	id[got > 0 ? got : 0] = 0;
	id[strcspn(id, "\n")] = 0;
	return id;
}

static int info(struct vm *vm, struct text *json)
{
	const char *comma = "";
	struct stat status;
	text_add(json, "{\"version\":1,\"pid\":%d,\"boot\":\"%s\",\"secondStage\":\"%s\",\"memory\":{\"fd\":%d,\"inode\":%llu,\"slots\":[", getpid(), boot_id(),
		 vm->second_stage, vm->memfd, (unsigned long long)(fstat(vm->memfd, &status) ? 0 : status.st_ino));
	for (int i = 0; i < MAX_SLOTS; i++) {
		const struct slot *slot = &vm->slots[i];
		if (!slot->used)
			continue;
		text_add(json, "%s{\"id\":%u", comma, slot->id);
		hex_json(json, "gpa", slot->gpa);
		hex_json(json, "size", slot->size);
		hex_json(json, "offset", slot->offset);
		flag_words(json, slot->flags);
		text_add(json, "}");
		comma = ",";
	}
	text_add(json, "]");
	for (int i = 0; i < vm->private_count; i++)
		text_add(json, "%s[\"0x%llx\",\"0x%llx\"]", i ? "," : ",\"private\":[", (unsigned long long)vm->private[i].start,
			 (unsigned long long)(vm->private[i].end - vm->private[i].start));
	text_add(json, "%s},\"vcpus\":%d,\"maxphyaddr\":%d,\"pages1g\":%s,\"vendor\":", vm->private_count ? "]" : "", vm->vcpu_count, vm->max_phys_addr,
		 vm->pages_1g ? "true" : "false");
	text_json(json, vm->cpu_vendor);
	/* As tracepoints name them, which know no other namespace than the first. */
	if (in_first_pid_namespace()) {
		for (int i = 0; i < vm->vcpu_count; i++)
			text_add(json, "%s%d", i ? "," : ",\"threads\":[", vm->vcpus[i]->tid);
		text_add(json, "]");
	}
	text_add(json, ",\"has\":{");
	for (int i = 0; capability_names[i]; i++) {
		text_add(json, i ? "," : "");
		text_json(json, capability_names[i]);
		text_add(json, ":");
		text_json(json, vm_lacks(vm, capability_names[i]));
	}
	text_add(json, "}}");
	return 0;
}

static int set_stops(struct vm *vm, const char *list)
{
	static const struct {
		const char *name;
		unsigned kind;
	} kinds[] = {
		{ "guest-pf", STOP_GUEST_PF },
		{ "second-stage", STOP_SECOND_STAGE },
		{ "mmio", STOP_MMIO },
		{ "read-only", STOP_READ_ONLY },
	};
	unsigned stops = 0;
	while (*list) {
		size_t length = strcspn(list, ",");
		unsigned kind = 0;
		for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
			if (strlen(kinds[i].name) == length && !strncmp(kinds[i].name, list, length))
				kind = kinds[i].kind;
		}
		if (!kind)
			return fail(EINVAL, "“%.*s” is no kind of stop: there are guest-pf, second-stage, mmio and read-only",
				    (int)length, list);
		stops |= kind;
		list += length;
		list += *list == ',';
	}
	vm->stops = stops;
	pthread_mutex_lock(&vm->lock);
	for (int i = 0; i < vm->vcpu_count; i++) {
		vm->vcpus[i]->recheck = true;
		vcpu_kick(vm->vcpus[i]);
	}
	pthread_mutex_unlock(&vm->lock);
	return 0;
}

static int slot_flags(const char *words, u32 *flags)
{
	*flags = 0;
	while (*words) {
		size_t length = strcspn(words, "+");
		if (length == 2 && !strncmp(words, "ro", 2))
			*flags |= KVM_MEM_READONLY;
		else if (length == 3 && !strncmp(words, "log", 3))
			*flags |= KVM_MEM_LOG_DIRTY_PAGES;
		else if (length == 7 && !strncmp(words, "private", 7))
			*flags |= KVM_MEM_GUEST_MEMFD;
		else
			return fail(EINVAL, "“%.*s” is no flag of a slot: there are ro, log and private", (int)length, words);
		words += length;
		words += *words == '+';
	}
	return 0;
}

static const char *after(const char *text, const char *prefix)
{
	size_t length = strlen(prefix);
	return strncmp(text, prefix, length) ? NULL : text + length;
}

/* The number of a slot, which has 32 bits. */
static int slot_id(u64 value, u32 *id)
{
	*id = (u32)value;
	return value > UINT32_MAX ? fail(EINVAL, "a slot's id has 32 bits: 0x%llx", (unsigned long long)value) : 0;
}

static int change_slots(struct vm *vm, const char *text)
{
	const char *at, *rest;
	u64 values[3];
	u32 flags, id;
	int error;
	if ((at = after(text, "add,"))) {
		error = numbers(at, values, 3, &rest);
		if (!error)
			error = slot_id(values[0], &id);
		if (!error)
			error = slot_flags(rest, &flags);
		return error ? error : vm_slot_add(vm, id, values[1], values[2], flags);
	}
	if ((at = after(text, "delete,"))) {
		error = numbers(at, values, 1, NULL);
		if (!error)
			error = slot_id(values[0], &id);
		return error ? error : vm_slot_delete(vm, id);
	}
	if ((at = after(text, "move,"))) {
		error = numbers(at, values, 2, NULL);
		if (!error)
			error = slot_id(values[0], &id);
		return error ? error : vm_slot_move(vm, id, values[1]);
	}
	if ((at = after(text, "flags,"))) {
		error = numbers(at, values, 1, &rest);
		if (!error)
			error = slot_id(values[0], &id);
		if (!error)
			error = slot_flags(rest, &flags);
		return error ? error : vm_slot_flags(vm, id, flags);
	}
	return fail(EINVAL, "“%s”: a slot can be changed by add, delete, move and flags", text);
}

static int trap(struct vm *vm, const char *text)
{
	u64 values[2];
	const char *how;
	int error = numbers(text, values, 2, &how);
	if (error)
		return error;
	bool write = !strcmp(how, "write");
	if (!write && strcmp(how, "touch"))
		return fail(EINVAL, "“%s”: pages can be armed for touch or write", how);
	return uffd_trap(vm, values[0], values[1], write);
}

static int set_attributes(struct vm *vm, const char *text)
{
	u64 values[2];
	const char *how;
	int error = numbers(text, values, 2, &how);
	if (error)
		return error;
	bool is_private = !strcmp(how, "private");
	if (!is_private && strcmp(how, "shared"))
		return fail(EINVAL, "“%s”: memory is private or shared", how);
	return vm_attributes(vm, values[0], values[1], is_private);
}

static struct vcpu *need_vcpu(struct vm *vm, u64 id)
{
	if (id < (u64)vm->vcpu_count)
		return vm->vcpus[id];
	fail(ENOENT, "there is no vCPU %llu; the machine has %d", (unsigned long long)id, vm->vcpu_count);
	return NULL;
}

static int pre_fault(struct vm *vm, const char *text)
{
	u64 values[3];
	int error = numbers(text, values, 3, NULL);
	if (error)
		return error;
	const struct vcpu *vcpu = need_vcpu(vm, values[0]);
	const char *lacks = vm_lacks(vm, "pre-fault");
	if (!vcpu)
		return -ENOENT;
	if (*lacks)
		return fail(EOPNOTSUPP, "%s", lacks);
	if (vcpu->state == VCPU_RUNNING)
		return fail(EBUSY, "vCPU %d is running: stop it first", vcpu->id);
	struct kvm_pre_fault_memory range = { .gpa = values[1], .size = values[2] };
	while (ioctl(vcpu->fd, KVM_PRE_FAULT_MEMORY, &range)) {
		if (errno != EINTR && errno != EAGAIN)
			return fail(errno, "KVM_PRE_FAULT_MEMORY at 0x%llx: %s", range.gpa, strerror(errno));
	}
	return 0;
}

static int set_trace(struct vm *vm, const char *how)
{
	bool all = !strcmp(how, "1,all");
	if (!strcmp(how, "0"))
		return events_off();
	if (!all && strcmp(how, "1"))
		return fail(EINVAL, "“%s”: events are recorded with 1, all of them with 1,all, and not with 0", how);
	/* The small VM that finds out what KVM honours must not be taken for this one: it is run before. */
	host_debug(vm);
	return events_on(all);
}

int vendor_packet(struct vm *vm, const char *packet, struct text *reply)
{
	const char *at;
	u64 values[3];
	int error;
	bool answers = false;
	if (!strcmp(packet, "qKvm.Info")) {
		answers = true;
		error = info(vm, reply);
	} else if (!strcmp(packet, "qKvm.Stats")) {
		answers = true;
		error = stats_json(vm, reply);
	} else if (!strcmp(packet, "qKvm.Tables")) {
		answers = true;
		error = tables_json(vm, reply);
	} else if ((at = after(packet, "QKvm.Stop:")))
		error = set_stops(vm, at);
	else if ((at = after(packet, "QKvm.Handler:"))) {
		error = numbers(at, values, 1, NULL);
		if (!error)
			vm->handler = values[0];
	} else if ((at = after(packet, "vKvm.Trap:")))
		error = trap(vm, at);
	else if ((at = after(packet, "vKvm.Untrap:"))) {
		error = numbers(at, values, 2, NULL);
		if (!error)
			error = uffd_untrap(vm, values[0], values[1]);
	} else if ((at = after(packet, "vKvm.Slot:")))
		error = change_slots(vm, at);
	else if ((at = after(packet, "vKvm.Discard:"))) {
		error = numbers(at, values, 2, NULL);
		if (!error)
			error = vm_discard(vm, values[0], values[1]);
		breakpoint_keep_all(vm);
	} else if ((at = after(packet, "vKvm.Unmap:"))) {
		error = numbers(at, values, 2, NULL);
		if (!error)
			error = vm_unmap(vm, values[0], values[1]);
	} else if ((at = after(packet, "vKvm.Migrate:"))) {
		error = numbers(at, values, 2, NULL);
		if (!error)
			error = vm_migrate(vm, values[0], values[1]);
	} else if (!strcmp(packet, "qKvm.Violations")) {
		answers = true;
		error = trace_take(vm, reply);
	} else if ((at = after(packet, "QKvm.Violations:"))) {
		error = numbers(at, values, 1, NULL);
		if (!error && values[0] > 1)
			error = fail(EINVAL, "“%s”: violations are traced with 1 and not with 0", at);
		if (!error)
			error = values[0] ? trace_on(vm) : trace_off();
	} else if (!strcmp(packet, "qKvm.Trace")) {
		answers = true;
		error = events_take(reply);
	} else if (!strcmp(packet, "qKvm.TraceFormats")) {
		answers = true;
		error = events_formats(reply);
	} else if (!strcmp(packet, "qKvm.TraceLost")) {
		answers = true;
		error = events_lost(reply);
	} else if ((at = after(packet, "QKvm.Trace:"))) {
		error = set_trace(vm, at);
	} else if (!strcmp(packet, "vKvm.Refresh")) {
		vm_quiesce(vm);
		error = vm_refresh(vm);
		vm_unquiesce(vm);
	} else if ((at = after(packet, "qKvm.Dirty:"))) {
		answers = true;
		u32 id;
		error = numbers(at, values, 1, NULL);
		if (!error)
			error = slot_id(values[0], &id);
		if (!error)
			error = dirty_log(vm, id, reply);
	} else if ((at = after(packet, "vKvm.DirtyManual:"))) {
		error = numbers(at, values, 1, NULL);
		if (!error)
			error = dirty_manual(vm, values[0]);
	} else if ((at = after(packet, "vKvm.DirtyClear:"))) {
		u32 id;
		error = numbers(at, values, 3, NULL);
		if (!error)
			error = slot_id(values[0], &id);
		if (!error)
			error = dirty_clear(vm, id, values[1], values[2]);
	} else if ((at = after(packet, "qKvm.DirtyRing:"))) {
		answers = true;
		error = numbers(at, values, 1, NULL);
		struct vcpu *vcpu = error ? NULL : need_vcpu(vm, values[0]);
		if (!error)
			error = vcpu ? ring_take(vcpu, reply) : -ENOENT;
	} else if ((at = after(packet, "vKvm.Attributes:")))
		error = set_attributes(vm, at);
	else if ((at = after(packet, "vKvm.Punch:"))) {
		error = numbers(at, values, 2, NULL);
		if (!error)
			error = vm_punch(vm, values[0], values[1]);
	} else if ((at = after(packet, "vKvm.PreFault:")))
		error = pre_fault(vm, at);
	else
		return 0;
	if (error)
		return error;
	if (!answers)
		text_add(reply, "OK");
	return 1;
}
