/* SPDX-License-Identifier: MIT */
/*
 * What KVM's tracepoints record of all that it builds and drops, in the kernel's own binary form: a client decodes it. Recorded
 * for all threads of the host, since MMU notifiers and the kernel's own threads zap too; whose an event is the client tells.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "events.h"
#include "helper.h"
#include "instance.h"

/* Of each CPU, in KiB: 100,000 events; less where there are so many CPUs that all would take more than the second. */
#define BUFFER_KB 4096
#define BUFFERS_KB (256 * 1024)
#define BUFFER_LEAST_KB 256
/* An answer is not longer than this and a page. */
#define ANSWER_MOST 0x40000
/* The longest `format` of the kernel, kvm_exit's with the names of all reasons, has 14 KB. */
#define FORMAT_MOST 65536
/* A page that others follow holds more than this. */
#define PAGE_LEAST 2048

/* Of kvmmmu all but these, which fire several times at each walk that KVM makes of the guest's tables. */
static const char *const of_walks[] = {
	"kvm_mmu_pagetable_walk", "kvm_mmu_paging_element", "kvm_mmu_set_accessed_bit",
	"kvm_mmu_set_dirty_bit",  "kvm_mmu_walker_error",   NULL,
};
/* Of kvm these. */
static const char *const of_kvm[] = {
	"kvm_page_fault", "kvm_inj_exception", "kvm_mmio",		    "kvm_unmap_hva_range", "kvm_age_hva",
	"kvm_set_spte_hva", "kvm_vm_set_mem_attributes", "kvm_rmp_fault", NULL,
};
/* And these, which fire at every exit. */
static const char *const of_exits[] = { "kvm_entry", "kvm_exit", NULL };

struct cpu_pipe {
	int cpu;
	int fd;
};

static struct {
	struct instance instance;
	struct cpu_pipe *pipes;
	size_t count;
	/* Whose turn it is: a CPU that fills its buffer all the time must not keep the others from being read. */
	size_t next;
} events = { .instance.hold = -1 };

static bool is_among(const char *const *names, const char *name)
{
	while (*names && strcmp(*names, name))
		names++;
	return *names;
}

static bool is_wanted(const char *system, const char *name, bool all)
{
	if (!strcmp(system, "kvmmmu"))
		return all || !is_among(of_walks, name);
	return is_among(of_kvm, name) || (all && is_among(of_exits, name));
}

/* ---- which there are */

/* What is done with an event; an error ends the walk. */
typedef int event_taker(void *context, const char *system, const char *name);

/* Goes through the events that this kernel has of those that can be recorded, in the order of their names. */
static int each_event(const char *root, event_taker *take, void *context)
{
	static const char *const systems[] = { "kvm", "kvmmmu" };
	int error = 0;
	for (size_t i = 0; i < 2; i++) {
		char path[128];
		struct dirent **names;
		snprintf(path, sizeof(path), "%s/events/%s", root, systems[i]);
		int count = scandir(path, &names, NULL, alphasort);
		for (int k = 0; k < count; k++) {
			const struct dirent *entry = names[k];
			if (entry->d_type == DT_DIR && *entry->d_name != '.' && is_wanted(systems[i], entry->d_name, true) && !error)
				error = take(context, systems[i], entry->d_name);
			free(names[k]);
		}
		if (count >= 0)
			free(names);
	}
	return error;
}

static int has_one(void *context, const char *system, const char *name)
{
	bool *has = context;
	*has |= is_wanted(system, name, false);
	return 0;
}

const char *events_lacks(void)
{
	const char *lacks = instance_lacks(), *root = tracefs();
	bool has = false;
	if (*lacks || !root)
		return lacks;
	each_event(root, has_one, &has);
	return has ? "" : "this kernel has none of KVM's tracepoints (CONFIG_TRACING, CONFIG_KVM)";
}

/* ---- on and off */

struct choice {
	bool all;
	int enabled;
	int error;
};

static int choose(void *context, const char *system, const char *name)
{
	struct choice *choice = context;
	char file[256];
	bool wanted = is_wanted(system, name, choice->all);
	snprintf(file, sizeof(file), "events/%s/%.128s/enable", system, name);
	int error = tracefs_write(events.instance.path, file, wanted ? "1" : "0");
	if (!wanted)
		return 0;
	if (error)
		choice->error = error;
	else
		choice->enabled++;
	return 0;
}

static int enable(bool all)
{
	struct choice choice = { .all = all };
	each_event(events.instance.path, choose, &choice);
	if (choice.enabled)
		return 0;
	return fail(choice.error ? -choice.error : ENOENT, "%s: no event can be enabled: %s", events.instance.path,
		    strerror(choice.error ? -choice.error : ENOENT));
}

static int by_cpu(const void *left, const void *right)
{
	const struct cpu_pipe *a = left, *b = right;
	return a->cpu - b->cpu;
}

static int open_pipes(void)
{
	char path[192];
	snprintf(path, sizeof(path), "%s/per_cpu", events.instance.path);
	DIR *folder = opendir(path);
	if (!folder)
		return fail(errno, "%s: %s", path, strerror(errno));
	int error = 0;
	for (struct dirent *entry; !error && (entry = readdir(folder));) {
		char *end;
		if (strncmp(entry->d_name, "cpu", 3))
			continue;
		long cpu = strtol(entry->d_name + 3, &end, 10);
		if (end == entry->d_name + 3 || *end || cpu < 0 || cpu > UINT16_MAX)
			continue;
		snprintf(path, sizeof(path), "%s/per_cpu/cpu%ld/trace_pipe_raw", events.instance.path, cpu);
		struct cpu_pipe *pipes = realloc(events.pipes, (events.count + 1) * sizeof(*pipes));
		int fd = pipes ? open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC) : -1;
		if (pipes)
			events.pipes = pipes;
		else
			errno = ENOMEM;
		if (fd < 0)
			error = fail(errno, "%s: %s", path, strerror(errno));
		else
			pipes[events.count++] = (struct cpu_pipe){ .cpu = (int)cpu, .fd = fd };
	}
	closedir(folder);
	if (events.count)
		qsort(events.pipes, events.count, sizeof(events.pipes[0]), by_cpu);
	return error;
}

int events_off(void)
{
	for (size_t i = 0; i < events.count; i++)
		close(events.pipes[i].fd);
	free(events.pipes);
	events.pipes = NULL;
	events.count = events.next = 0;
	return instance_close(&events.instance);
}

void events_pause(void)
{
	tracefs_write(events.instance.path, "tracing_on", "0");
}

int events_on(bool all)
{
	const char *lacks = events_lacks();
	if (events.instance.hold >= 0)
		return enable(all);
	if (*lacks)
		return fail(EOPNOTSUPP, "%s", lacks);
	long cpus = sysconf(_SC_NPROCESSORS_CONF);
	long kb = BUFFERS_KB / (cpus > 0 ? cpus : 1);
	kb = kb > BUFFER_KB ? BUFFER_KB : kb < BUFFER_LEAST_KB ? BUFFER_LEAST_KB : kb;
	int error = instance_open(&events.instance, "-events", (unsigned)kb);
	if (!error)
		error = open_pipes();
	if (!error)
		error = enable(all);
	if (error) {
		char words[sizeof(why)];
		memcpy(words, why, sizeof(why));
		events_off();
		memcpy(why, words, sizeof(why));
	}
	return error;
}

static int need_events(void)
{
	return events.instance.hold < 0 ? fail(EINVAL, "events are not recorded: QKvm.Trace:1 first") : 0;
}

/* ---- what they look like */

struct listing {
	const char *root;
	struct text *json;
	char *text;
	const char *comma;
};

static int add_format(void *context, const char *system, const char *name)
{
	struct listing *listing = context;
	char file[256];
	snprintf(file, sizeof(file), "events/%s/%.128s/format", system, name);
	if (!tracefs_read(listing->root, file, listing->text, FORMAT_MOST))
		return 0;
	text_add(listing->json, "%s{\"system\":\"%s\",\"name\":", listing->comma, system);
	text_json(listing->json, name);
	text_add(listing->json, ",\"format\":");
	text_json(listing->json, listing->text);
	text_add(listing->json, "}");
	listing->comma = ",";
	return 0;
}

int events_formats(struct text *json)
{
	const char *lacks = events_lacks();
	struct listing listing = { .root = tracefs(), .json = json, .comma = "" };
	struct utsname name;
	char line[sizeof(name) + 8];
	if (*lacks || !listing.root)
		return fail(EOPNOTSUPP, "%s", lacks);
	/* Pages of an instance need not be as large as those of other tracing. */
	if (events.instance.hold >= 0)
		listing.root = events.instance.path;
	listing.text = malloc(FORMAT_MOST);
	if (!listing.text || uname(&name)) {
		free(listing.text);
		return fail(ENOMEM, "no memory for the formats of events");
	}
	snprintf(line, sizeof(line), "%s %s %s %s", name.sysname, name.nodename, name.release, name.machine);
	text_add(json, "{\"clock\":\"" TRACE_CLOCK "\",\"uname\":");
	text_json(json, line);
	static const char *const headers[][2] = { { "headerPage", "events/header_page" }, { "headerEvent", "events/header_event" } };
	for (size_t i = 0; i < 2; i++) {
		text_add(json, ",\"%s\":", headers[i][0]);
		/* That of pages is for all of tracing where kernels know one size only. */
		bool found = tracefs_read(listing.root, headers[i][1], listing.text, FORMAT_MOST) ||
			     tracefs_read(tracefs(), headers[i][1], listing.text, FORMAT_MOST);
		text_json(json, found ? listing.text : "");
	}
	text_add(json, ",\"events\":[");
	each_event(listing.root, add_format, &listing);
	text_add(json, "]}");
	free(listing.text);
	return 0;
}

/* ---- taking */

/* Bytes that a CPU has recorded and nobody has read. */
static u64 waiting(int cpu)
{
	char name[64], stats[1024];
	snprintf(name, sizeof(name), "per_cpu/cpu%d/stats", cpu);
	if (!tracefs_read(events.instance.path, name, stats, sizeof(stats)))
		return 0;
	const char *bytes = strstr(stats, "\nbytes: ");
	return bytes ? strtoull(bytes + 8, NULL, 10) : 0;
}

int events_pages(size_t most, size_t least, page_taker *take, void *context)
{
	static u8 page[PAGE_MOST];
	size_t taken = 0;
	for (size_t done = 0; done < events.count; done++) {
		size_t index = (events.next + done) % events.count;
		const struct cpu_pipe *pipe = &events.pipes[index];
		u64 bytes = waiting(pipe->cpu);
		if (bytes < least)
			continue;
		/* What is there now: of a CPU that records without end there would always be more. The first and the last page are partly filled. */
		u64 reads = least ? bytes / least : bytes / PAGE_LEAST + 3;
		ssize_t got;
		for (; reads && taken < most && (got = read(pipe->fd, page, sizeof(page))) > 0; reads--) {
			int error = take(context, pipe->cpu, page, (size_t)got);
			if (error)
				return error;
			taken += (size_t)got;
		}
		if (taken >= most) {
			events.next = (index + 1) % events.count;
			return 1;
		}
	}
	return 0;
}

static int add_page(void *context, int cpu, const u8 *page, size_t length)
{
	struct text *bytes = context;
	u8 header[PAGE_RECORD_HEADER];
	page_record_header(header, cpu, length);
	text_bytes(bytes, header, sizeof(header));
	text_bytes(bytes, page, length);
	return bytes->failed ? fail(ENOMEM, "no memory for the events") : 0;
}

int events_take(struct text *bytes)
{
	int error = need_events();
	if (error)
		return error;
	text_add(bytes, "b");
	error = events_pages(ANSWER_MOST, 0, add_page, bytes);
	return error < 0 ? error : 0;
}

void page_record_header(u8 header[PAGE_RECORD_HEADER], int cpu, size_t length)
{
	header[0] = (u8)cpu;
	header[1] = (u8)(cpu >> 8);
	for (int i = 0; i < 4; i++)
		header[2 + i] = (u8)(length >> 8 * i);
}

int events_lost(struct text *json)
{
	struct lost lost = { 0 };
	int error = need_events();
	if (error)
		return error;
	for (size_t i = 0; i < events.count; i++) {
		char cpu[16];
		snprintf(cpu, sizeof(cpu), "cpu%d", events.pipes[i].cpu);
		instance_lost(&events.instance, cpu, &lost);
	}
	text_add(json, "{\"overrun\":%llu,\"dropped\":%llu}", (unsigned long long)lost.overrun, (unsigned long long)lost.dropped);
	return 0;
}
