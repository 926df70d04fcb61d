/* SPDX-License-Identifier: MIT */
/*
 * Violations that no userfaultfd sees, because the host's page is there: KVM's tracepoints tell of them afterwards. They
 * are recorded in a tracefs instance of this process alone, which no other tracing notices.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "helper.h"
#include "instance.h"
#include "records.h"

/* Of each CPU, in KiB: MOST records of any of the events, and what pages waste. */
#define BUFFER_KB 512
/* Violations told at once: the newest. */
#define MOST 4096
/* Reads of one CPU's buffer at once, so that vCPUs that fault without end cannot keep the server. */
#define READS_MOST 1024

/* What fields of events mean. ADDRESS is guest-physical with EPT or NPT, else linear. */
enum meaning { THREAD, ADDRESS, GFN, PFN, LEVEL, ERROR, RIP, OLD_SPTE, NEW_SPTE, MEANINGS };
_Static_assert(MEANINGS <= RECORD_FIELDS, "a format has a place for each");

/*
 * The events that say where, of those that an access by the guest causes while its slot has memory. An access that no slot
 * holds exits, and is a stop of its own.
 */
static const struct event {
	const char *system;
	const char *name;
	/* The kernel's names; NULL for what the event does not tell. */
	const char *fields[MEANINGS];
} events[] = {
	{ "kvm",
	  "kvm_page_fault",
	  { [THREAD] = "common_pid", [ADDRESS] = "fault_address", [ERROR] = "error_code", [RIP] = "guest_rip" } },
	{ "kvmmmu",
	  "fast_page_fault",
	  { [THREAD] = "common_pid",
	    [ADDRESS] = "cr2_or_gpa",
	    [ERROR] = "error_code",
	    [OLD_SPTE] = "old_spte",
	    [NEW_SPTE] = "new_spte" } },
	{ "kvmmmu",
	  "kvm_mmu_spte_requested",
	  { [THREAD] = "common_pid", [GFN] = "gfn", [PFN] = "pfn", [LEVEL] = "level" } },
};
#define EVENTS ((int)(sizeof(events) / sizeof(events[0])))

struct violation {
	u64 time;
	/* In which order it was read: of the records of one CPU that is the order in which they happened. */
	size_t number;
	int vcpu;
	int event;
	/* Bits of enum meaning. */
	unsigned told;
	u64 values[MEANINGS];
};

static struct {
	struct instance instance;
	bool enabled[EVENTS];
	struct record_format formats[EVENTS];
	/* What the kernel has counted as lost, up to the last time. */
	u64 lost_before;
} trace = { .instance.hold = -1 };

/* What is being collected. */
struct harvest {
	struct vm *vm;
	struct violation *list;
	size_t count;
	size_t room;
	u64 lost;
};

/* ---- what the host has */

/* Reads what this kernel's event tells; whether it is an event that can be used. */
static bool read_format(const char *root, int event, struct record_format *format)
{
	char name[96], text[8192];
	const char *names[MEANINGS];
	enum meaning meanings[MEANINGS];
	int count = 0;
	struct record_format found;
	snprintf(name, sizeof(name), "events/%s/%s/format", events[event].system, events[event].name);
	if (!tracefs_read(root, name, text, sizeof(text)))
		return false;
	for (int meaning = 0; meaning < MEANINGS; meaning++) {
		if (!events[event].fields[meaning])
			continue;
		names[count] = events[event].fields[meaning];
		meanings[count++] = meaning;
	}
	if (!format_parse(text, names, count, &found))
		return false;
	*format = (struct record_format){ .id = found.id };
	for (int i = 0; i < count; i++)
		format->fields[meanings[i]] = found.fields[i];
	return format->fields[THREAD].size && (format->fields[GFN].size || format->fields[ADDRESS].size);
}

const char *trace_lacks(void)
{
	const char *lacks = instance_lacks(), *root = tracefs();
	struct record_format format;
	if (*lacks || !root)
		return lacks;
	for (int event = 0; event < EVENTS; event++) {
		if (read_format(root, event, &format))
			return "";
	}
	return "this kernel has none of the tracepoints kvm_page_fault, fast_page_fault and kvm_mmu_spte_requested";
}

/* ---- on and off */

int trace_off(void)
{
	return instance_close(&trace.instance);
}

/* Makes the instance record this machine's events. */
static int set_up(struct vm *vm, const char *root)
{
	const char *path = trace.instance.path;
	char name[96];
	struct text threads = { 0 };
	for (int i = 0; i < vm->vcpu_count; i++)
		text_add(&threads, "%d ", vm->vcpus[i]->tid);
	int error = threads.at ? tracefs_write(path, "set_event_pid", threads.at) : -ENOMEM;
	text_free(&threads);
	if (error)
		return fail(-error, "%s: set_event_pid: %s", path, strerror(-error));
	/* Only now, so that nothing of anybody else's is recorded. */
	int enabled = 0;
	for (int event = 0; event < EVENTS; event++) {
		snprintf(name, sizeof(name), "events/%s/%s/enable", events[event].system, events[event].name);
		trace.enabled[event] = read_format(root, event, &trace.formats[event]) && !(error = tracefs_write(path, name, "1"));
		enabled += trace.enabled[event];
	}
	if (!enabled)
		return fail(error ? -error : ENOENT, "%s: no event can be enabled: %s", path, strerror(error ? -error : ENOENT));
	return 0;
}

/* Nothing of before; what the kernel counted as lost so far is no loss. */
static void forget(void);

int trace_on(struct vm *vm)
{
	const char *lacks = trace_lacks(), *root = tracefs();
	if (trace.instance.hold >= 0)
		return 0;
	if (*lacks || !root)
		return fail(EOPNOTSUPP, "%s", lacks);
	/* The small VM that finds out what KVM honours must not be taken for this one: it is run before. */
	host_debug(vm);
	int error = instance_open(&trace.instance, "", BUFFER_KB);
	if (error)
		return error;
	error = set_up(vm, root);
	if (!error) {
		forget();
		return 0;
	}
	char words[sizeof(why)];
	memcpy(words, why, sizeof(why));
	trace_off();
	memcpy(why, words, sizeof(why));
	return error;
}

/* ---- taking */

static void take_record(void *context, u64 time, const u8 *record, size_t length)
{
	struct harvest *harvest = context;
	uint16_t id;
	int event = 0;
	if (!record_id(record, length, &id)) {
		harvest->lost++;
		return;
	}
	while (event < EVENTS && !(trace.enabled[event] && trace.formats[event].id == id))
		event++;
	/* What someone else has turned on in the instance is nobody's loss. */
	if (event == EVENTS)
		return;
	const struct record_format *format = &trace.formats[event];
	if (!format_fits(format, length)) {
		harvest->lost++;
		return;
	}
	struct violation found = { .time = time, .number = harvest->count, .vcpu = -1, .event = event };
	for (int meaning = 0; meaning < MEANINGS; meaning++) {
		if (format_value(format, record, meaning, &found.values[meaning]))
			found.told |= 1U << meaning;
	}
	for (int i = 0; i < harvest->vm->vcpu_count; i++) {
		if ((u64)harvest->vm->vcpus[i]->tid == found.values[THREAD])
			found.vcpu = i;
	}
	if (found.vcpu < 0)
		return;
	if (harvest->count == harvest->room) {
		size_t room = harvest->room ? 2 * harvest->room : 256;
		struct violation *list = realloc(harvest->list, room * sizeof(*list));
		if (!list) {
			harvest->lost++;
			return;
		}
		harvest->list = list;
		harvest->room = room;
	}
	harvest->list[harvest->count++] = found;
}

/* What one CPU has recorded since the last time; what the kernel has thrown away on it since the beginning. */
static u64 take_cpu(struct harvest *harvest, const char *cpu)
{
	static u8 page[PAGE_MOST];
	char path[192];
	struct lost lost = { 0 };
	snprintf(path, sizeof(path), "%s/per_cpu/%.32s/trace_pipe_raw", trace.instance.path, cpu);
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd >= 0) {
		ssize_t got;
		for (int reads = 0; reads < READS_MOST && (got = read(fd, page, sizeof(page))) > 0; reads++) {
			/* How many records a broken page held cannot be known: at least one. */
			if (!page_records(page, (size_t)got, take_record, harvest))
				harvest->lost++;
		}
		close(fd);
	}
	instance_lost(&trace.instance, cpu, &lost);
	return lost.overrun + lost.dropped;
}

static int take_all(struct harvest *harvest)
{
	char path[128];
	u64 lost = 0;
	snprintf(path, sizeof(path), "%s/per_cpu", trace.instance.path);
	DIR *folder = opendir(path);
	if (!folder)
		return fail(errno, "%s: %s", path, strerror(errno));
	for (struct dirent *entry; (entry = readdir(folder));) {
		if (!strncmp(entry->d_name, "cpu", 3))
			lost += take_cpu(harvest, entry->d_name);
	}
	closedir(folder);
	if (lost > trace.lost_before)
		harvest->lost += lost - trace.lost_before;
	trace.lost_before = lost;
	return 0;
}

static void forget(void)
{
	static struct vm nobody;
	struct harvest harvest = { .vm = &nobody };
	trace.lost_before = 0;
	take_all(&harvest);
	free(harvest.list);
}

static int by_time(const void *left, const void *right)
{
	const struct violation *a = left, *b = right;
	if (a->time != b->time)
		return a->time < b->time ? -1 : 1;
	return a->number < b->number ? -1 : a->number > b->number;
}

static void violation_json(const struct vm *vm, const struct violation *violation, struct text *json)
{
	/* Of a shadow MMU faults are the processor's own: their address is that of the access. */
	const char *const names[MEANINGS] = {
		[ADDRESS] = vm_is_shadow(vm) ? "gva" : "gpa",
		[GFN] = "gfn",
		[PFN] = "pfn",
		[ERROR] = "error",
		[RIP] = "rip",
		[OLD_SPTE] = "old",
		[NEW_SPTE] = "new",
	};
	text_add(json, "{\"vcpu\":%d,\"event\":\"%s\"", violation->vcpu, events[violation->event].name);
	for (int meaning = 0; meaning < MEANINGS; meaning++) {
		if (names[meaning] && (violation->told & 1U << meaning))
			text_add(json, ",\"%s\":\"0x%llx\"", names[meaning], (unsigned long long)violation->values[meaning]);
	}
	if (violation->told & 1U << LEVEL)
		text_add(json, ",\"level\":%llu", (unsigned long long)violation->values[LEVEL]);
	text_add(json, "}");
}

int trace_take(struct vm *vm, struct text *json)
{
	struct harvest harvest = { .vm = vm };
	if (trace.instance.hold < 0)
		return fail(EINVAL, "violations are not traced: QKvm.Violations:1 first");
	int error = take_all(&harvest);
	if (!error) {
		size_t first = harvest.count > MOST ? harvest.count - MOST : 0;
		if (harvest.count)
			qsort(harvest.list, harvest.count, sizeof(*harvest.list), by_time);
		text_add(json, "{\"lost\":%llu,\"list\":[", (unsigned long long)(harvest.lost + first));
		for (size_t i = first; i < harvest.count; i++) {
			text_add(json, i > first ? "," : "");
			violation_json(vm, &harvest.list[i], json);
		}
		text_add(json, "]}");
	}
	free(harvest.list);
	return error;
}
