/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "events.h"
#include "helper.h"
#include "instance.h"
#include "record.h"

static const char usage[] =
	"usage: kvm-mmu-helper [--memory SIZE | --slot ID:GPA:SIZE[:ro|:private]]... [--vcpus N] [--image FILE[@GPA]]\n"
	"                      [--vm-type ordinary|software-protected] [--dirty-ring N] [--page-size 4K|2M]\n"
	"                      [--populate yes|no] [--listen PATH]\n"
	"       kvm-mmu-helper --record FD [--all] -- COMMAND [ARGUMENT]...\n"
	"Owns a virtual machine under KVM and speaks the GDB remote protocol, on standard input and output or at a\n"
	"Unix socket. SIZE may end in K, M or G; numbers may begin with 0x. An image is an ELF64 file, or flat and\n"
	"loaded at GPA (1M if not given). Memory is 64M at address 0 if not given.\n"
	"A software-protected VM has private memory, for which slots that are private have a guest_memfd.\n"
	"With --page-size 2M the host is asked for large pages behind it, where its shmem_enabled is advise.\n"
	"With --populate yes the host has all of it mapped from the start, so that KVM need wait for no page.\n"
	"With --record there is no machine: KVM's events are written to FD while a command runs.\n";

/* A number with an optional unit; what follows must be `end` or nothing. */
static bool parse_size(const char *text, const char *ends, const char **rest, u64 *value)
{
	char *after;
	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*value = strtoull(text, &after, 0);
	int shift = *after == 'K' ? 10 : *after == 'M' ? 20 : *after == 'G' ? 30 : 0;
	if (shift)
		after++;
	if (errno || *value > UINT64_MAX >> shift)
		return false;
	*value <<= shift;
	*rest = after;
	return !*after || strchr(ends, *after);
}

static int parse_slot(struct vm_options *options, const char *text)
{
	u64 id, gpa, size;
	const char *at = text;
	bool good = parse_size(at, ":", &at, &id) && *at++ == ':' && parse_size(at, ":", &at, &gpa) && *at++ == ':' &&
		    parse_size(at, ":", &at, &size) && id <= UINT32_MAX;
	bool readonly = good && !strcmp(at, ":ro");
	bool private = good && !strcmp(at, ":private");
	if (!good || (*at && !readonly && !private))
		return fail(EINVAL,
			    "--slot %s: ID:GPA:SIZE is wanted, with :ro behind it if the guest may not write, or :private for a guest_memfd",
			    text);
	if (options->slot_count == MAX_SLOTS)
		return fail(ENOSPC, "--slot %s: at most %d slots are possible", text, MAX_SLOTS);
	options->slots[options->slot_count].id = (u32)id;
	options->slots[options->slot_count].gpa = gpa;
	options->slots[options->slot_count].size = size;
	options->slots[options->slot_count++].flags = readonly ? KVM_MEM_READONLY : private ? KVM_MEM_GUEST_MEMFD : 0;
	return 0;
}

static int parse_options(int count, char **arguments, struct vm_options *options, const char **listen_path)
{
	const char *rest;
	u64 value;
	*options = (struct vm_options){ .vcpus = 1, .image_gpa = 1 << 20 };
	for (int i = 1; i < count; i++) {
		const char *name = arguments[i], *text = i + 1 < count ? arguments[i + 1] : NULL;
		static const char *const names[] = { "--memory", "--slot",	 "--vcpus", "--image",
						     "--listen", "--dirty-ring", "--page-size", "--vm-type",
						     "--populate", NULL };
		int known = 0;
		while (names[known] && strcmp(names[known], name))
			known++;
		if (!names[known])
			return fail(EINVAL, "unknown option %s", name);
		if (!text)
			return fail(EINVAL, "%s needs a value", name);
		i++;
		switch (known) {
		case 0:
		case 2:
		case 5:
			if (!parse_size(text, "", &rest, &value) || (known && (!value || value > 1 << 20)))
				return fail(EINVAL, "%s %s: a %s is wanted", name, text, known ? "small number" : "size such as 64M");
			if (known == 2)
				options->vcpus = (int)value;
			else if (known == 5)
				options->dirty_ring = (u32)value;
			else {
				if (options->slot_count)
					return fail(EINVAL, "--memory is one slot: give either it or --slot");
				options->slots[options->slot_count++].size = value;
			}
			break;
		case 1: {
			int error = parse_slot(options, text);
			if (error)
				return error;
			break;
		}
		case 3: {
			char *at = strrchr(arguments[i], '@');
			if (at && parse_size(at + 1, "", &rest, &options->image_gpa))
				*at = 0;
			options->image = arguments[i];
			break;
		}
		case 4:
			*listen_path = text;
			break;
		case 6:
			options->huge = !strcmp(text, "2M");
			if (!options->huge && strcmp(text, "4K"))
				return fail(EINVAL, "--page-size %s: 4K or 2M is wanted", text);
			break;
		case 7:
			options->software_protected = !strcmp(text, "software-protected");
			if (!options->software_protected && strcmp(text, "ordinary"))
				return fail(EINVAL, "--vm-type %s: ordinary or software-protected is wanted", text);
			break;
		case 8:
			options->populate = !strcmp(text, "yes");
			if (!options->populate && strcmp(text, "no"))
				return fail(EINVAL, "--populate %s: yes or no is wanted", text);
			break;
		}
	}
	if (!options->slot_count)
		options->slots[options->slot_count++].size = 64 << 20;
	return 0;
}

static void on_kick(int signal)
{
	(void)signal;
}

int main(int count, char **arguments)
{
	static struct vm vm;
	struct vm_options options;
	const char *listen_path = NULL;
	if (count == 2 && (!strcmp(arguments[1], "--help") || !strcmp(arguments[1], "-h"))) {
		fputs(usage, stdout);
		return 0;
	}
	if (count > 1 && !strcmp(arguments[1], "--record"))
		return record_command(count - 2, arguments + 2);
	if (parse_options(count, arguments, &options, &listen_path)) {
		fprintf(stderr, "kvm-mmu-helper: %s\n%s", why, usage);
		return 2;
	}
	/* Kicks are for the threads of vCPUs, which let them through. They interrupt KVM_RUN: no SA_RESTART. */
	struct sigaction kick = { .sa_handler = on_kick };
	sigaction(SIGUSR1, &kick, NULL);
	sigset_t kicks;
	sigemptyset(&kicks);
	sigaddset(&kicks, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &kicks, NULL);
	instance_sweep();
	int error = vm_create(&vm, &options);
	if (!error && options.image)
		error = image_load(&vm, options.image, options.image_gpa);
	if (!error)
		error = serve(&vm, listen_path);
	if (error)
		fprintf(stderr, "kvm-mmu-helper: %s\n", why);
	trace_off();
	events_off();
	return error ? 1 : 0;
}
