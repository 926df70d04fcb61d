/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "instance.h"

#define TRACEFS_MAGIC_NUMBER 0x74726163
#define PREFIX "kvm-mmu-helper-"

/* ---- files */

int tracefs_write(const char *folder, const char *name, const char *text)
{
	char path[256];
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	size_t length = strlen(text);
	int error = length && write(fd, text, length) != (ssize_t)length ? -errno : 0;
	close(fd);
	return error;
}

bool tracefs_read(const char *folder, const char *name, char *text, size_t room)
{
	char path[256];
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	size_t length = 0;
	ssize_t got = 0;
	while (length < room - 1 && (got = read(fd, text + length, room - 1 - length)) > 0)
		length += (size_t)got;
	close(fd);
	text[length] = 0;
	return got == 0 && strlen(text) == length;
}

/* ---- what the host has */

const char *tracefs(void)
{
	static const char *const places[] = { "/sys/kernel/tracing", "/sys/kernel/debug/tracing" };
	struct statfs status;
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		if (!statfs(places[i], &status) && status.f_type == TRACEFS_MAGIC_NUMBER)
			return places[i];
	}
	return NULL;
}

bool in_first_pid_namespace(void)
{
	struct stat status;
	/* PROC_PID_INIT_INO of the kernel's proc_ns.h. */
	return stat("/proc/self/ns/pid", &status) || status.st_ino == 0xeffffffc;
}

const char *instance_lacks(void)
{
	const char *root = tracefs();
	char path[128], text[1024];
	if (!root)
		return "tracefs is not mounted: mount -t tracefs tracefs /sys/kernel/tracing";
	snprintf(path, sizeof(path), "%s/instances", root);
	if (access(path, W_OK | X_OK))
		return errno == ENOENT ? "this kernel's tracefs has no instances" :
					 "no permission for tracefs: run the helper as root";
	if (!in_first_pid_namespace())
		return "the helper runs in a PID namespace, and tracepoints name threads by their numbers outside of it: run the helper outside of the container";
	if (!tracefs_read(root, "events/header_page", text, sizeof(text)))
		return "events cannot be read in tracefs: the kernel may be locked down (lockdown=confidentiality)";
	if (!strstr(text, "timestamp;\toffset:0;\tsize:8;") || !strstr(text, "commit;\toffset:8;\tsize:8;") ||
	    !strstr(text, "data;\toffset:16;"))
		return "this kernel's trace buffers have a layout that the helper does not know";
	return "";
}

/* ---- instances */

/* The process whose instance it is, by its name; 0 when it is none of ours. */
static pid_t owner(const char *name)
{
	const char *digits = name + strlen(PREFIX);
	if (strncmp(name, PREFIX, strlen(PREFIX)))
		return 0;
	size_t count = strspn(digits, "0123456789");
	if (!count || count > 9 || (digits[count] && digits[count] != '-'))
		return 0;
	return atoi(digits);
}

void instance_sweep(void)
{
	const char *root = tracefs();
	char path[400];
	/* Numbers of processes mean nothing across namespaces. */
	if (!root || !in_first_pid_namespace())
		return;
	snprintf(path, sizeof(path), "%s/instances", root);
	DIR *folder = opendir(path);
	if (!folder)
		return;
	for (struct dirent *entry; (entry = readdir(folder));) {
		pid_t pid = owner(entry->d_name);
		/* This process has made none yet. */
		if (!pid || (pid != getpid() && (!kill(pid, 0) || errno != ESRCH)))
			continue;
		snprintf(path, sizeof(path), "%s/instances/%s", root, entry->d_name);
		rmdir(path);
	}
	closedir(folder);
}

int instance_close(struct instance *instance)
{
	if (!*instance->path)
		return 0;
	if (instance->hold >= 0)
		close(instance->hold);
	instance->hold = -1;
	/* Should the folder stay, at least nothing is recorded any more. */
	tracefs_write(instance->path, "events/enable", "0");
	if (rmdir(instance->path) && errno != ENOENT)
		return fail(errno, "%s cannot be removed: %s (is somebody reading it?)", instance->path, strerror(errno));
	*instance->path = 0;
	return 0;
}

static int set_up(struct instance *instance, unsigned buffer_kb)
{
	char path[128], kb[16];
	snprintf(path, sizeof(path), "%s/tracing_on", instance->path);
	instance->hold = open(path, O_RDONLY | O_CLOEXEC);
	if (instance->hold < 0)
		return fail(errno, "%s: %s", path, strerror(errno));
	/* What is as it should be on most kernels need not be settable; what was changed for all of tracing is not inherited. */
	tracefs_write(instance->path, "trace_options", "overwrite");
	tracefs_write(instance->path, "trace_options", "nostacktrace");
	tracefs_write(instance->path, "trace_options", "nouserstacktrace");
	tracefs_write(instance->path, "trace_clock", TRACE_CLOCK);
	snprintf(kb, sizeof(kb), "%u", buffer_kb);
	int error = tracefs_write(instance->path, "buffer_size_kb", kb);
	if (error)
		return fail(-error, "%s: no buffer of %s KiB for each CPU: %s", instance->path, kb, strerror(-error));
	/* What could not be removed the last time. */
	tracefs_write(instance->path, "trace", "");
	tracefs_write(instance->path, "tracing_on", "1");
	return 0;
}

int instance_open(struct instance *instance, const char *word, unsigned buffer_kb)
{
	const char *root = tracefs();
	if (!root)
		return fail(ENOENT, "%s", instance_lacks());
	snprintf(instance->path, sizeof(instance->path), "%s/instances/" PREFIX "%d%s", root, getpid(), word);
	if (mkdir(instance->path, 0700) && errno != EEXIST) {
		int error = errno;
		int failed = fail(error, "%s cannot be made: %s", instance->path, strerror(error));
		*instance->path = 0;
		return failed;
	}
	int error = set_up(instance, buffer_kb);
	if (error) {
		char words[sizeof(why)];
		memcpy(words, why, sizeof(why));
		instance_close(instance);
		memcpy(why, words, sizeof(why));
	}
	return error;
}

/* `overrun: 12`: a number of a CPU's stats. */
static u64 counted(const char *stats, const char *name)
{
	for (const char *line = stats; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, name, strlen(name)))
			return strtoull(line + strlen(name), NULL, 10);
	}
	return 0;
}

void instance_lost(const struct instance *instance, const char *cpu, struct lost *lost)
{
	char name[64], stats[1024];
	snprintf(name, sizeof(name), "per_cpu/%.32s/stats", cpu);
	if (!tracefs_read(instance->path, name, stats, sizeof(stats)))
		return;
	lost->overrun += counted(stats, "overrun: ");
	lost->dropped += counted(stats, "commit overrun: ") + counted(stats, "dropped events: ");
}
