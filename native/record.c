/* SPDX-License-Identifier: MIT */
/* Records KVM's events while a command runs. PROTOCOL.md, "Recording a command", has what is written. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "events.h"
#include "helper.h"
#include "instance.h"
#include "record.h"
#include "records.h"

/* Exit statuses: of shells, for a command that is not there or cannot be run; and when nothing can be recorded. */
enum { NOT_FOUND = 127, NOT_RUN = 126, CANNOT_RECORD = 3, BAD_USAGE = 2 };
/* How often the buffers are looked at, in milliseconds: each holds 100,000 events. */
#define LOOK_MS 25
/* Bytes that are taken between two looks at what the command does. */
#define AT_ONCE (16 << 20)
/* A page's bytes: no kernel has less. */
#define PAGE_FILLED 4096
/* The CPU of the record that ends the stream. */
#define END_CPU 0xffff
#define COMMS_MOST (1 << 20)

struct stream {
	int fd;
	u64 events;
};

static int write_all(int fd, const void *bytes, size_t length)
{
	const u8 *at = bytes;
	while (length) {
		ssize_t done = write(fd, at, length);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return fail(errno, "what is recorded cannot be handed over: %s", strerror(errno));
		at += done;
		length -= (size_t)done;
	}
	return 0;
}

static void count_event(void *context, u64 time, const u8 *record, size_t length)
{
	struct stream *stream = context;
	(void)time;
	(void)record;
	(void)length;
	stream->events++;
}

static int write_record(const struct stream *stream, int cpu, const void *bytes, size_t length)
{
	u8 header[PAGE_RECORD_HEADER];
	page_record_header(header, cpu, length);
	int error = write_all(stream->fd, header, sizeof(header));
	return error ? error : write_all(stream->fd, bytes, length);
}

static int write_page(void *context, int cpu, const u8 *page, size_t length)
{
	struct stream *stream = context;
	page_records(page, length, count_event, stream);
	return write_record(stream, cpu, page, length);
}

static int write_header(const struct stream *stream)
{
	struct text json = { 0 };
	int error = events_formats(&json);
	if (!error) {
		text_add(&json, "\n");
		error = json.failed ? fail(ENOMEM, "no memory for the formats of events") : write_all(stream->fd, json.at, json.length);
	}
	text_free(&json);
	return error;
}

static int write_end(const struct stream *stream, int status)
{
	struct text json = { 0 };
	char *comms = malloc(COMMS_MOST);
	const char *root = tracefs();
	text_add(&json, "{\"events\":%llu,\"lost\":", (unsigned long long)stream->events);
	int error = events_lost(&json);
	text_add(&json, ",\"status\":%d,\"comms\":", status);
	text_json(&json, comms && root && tracefs_read(root, "saved_cmdlines", comms, COMMS_MOST) ? comms : "");
	text_add(&json, "}");
	if (!error)
		error = json.failed ? fail(ENOMEM, "no memory for the threads' names") :
				      write_record(stream, END_CPU, json.at, json.length);
	text_free(&json);
	free(comms);
	return error;
}

/* ---- the command */

/* Starts the command; its number, or a negative errno when it cannot be run. */
static pid_t start(char **command, const sigset_t *before)
{
	int gate[2], error = 0;
	if (pipe2(gate, O_CLOEXEC))
		return -errno;
	pid_t pid = fork();
	if (pid < 0) {
		error = -errno;
		close(gate[0]);
		close(gate[1]);
		return error;
	}
	if (!pid) {
		sigprocmask(SIG_SETMASK, before, NULL);
		signal(SIGPIPE, SIG_DFL);
		execvp(*command, command);
		error = errno;
		if (write(gate[1], &error, sizeof(error)) < 0)
			_exit(NOT_RUN);
		_exit(NOT_FOUND);
	}
	close(gate[1]);
	/* Nothing comes when it runs: the pipe is closed then. */
	while (read(gate[0], &error, sizeof(error)) < 0 && errno == EINTR)
		;
	close(gate[0]);
	if (!error)
		return pid;
	waitpid(pid, NULL, 0);
	return -error;
}

/* As shells tell it. */
static int shell_status(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Hands over what is recorded until the command has ended. */
static int follow(struct stream *stream, pid_t pid, int signals, int *status)
{
	for (;;) {
		struct pollfd fd = { .fd = signals, .events = POLLIN };
		poll(&fd, 1, LOOK_MS);
		struct signalfd_siginfo told;
		/* The terminal's own signals reach the command by themselves. */
		while (read(signals, &told, sizeof(told)) == sizeof(told)) {
			if (told.ssi_signo == SIGTERM || told.ssi_signo == SIGHUP)
				kill(pid, (int)told.ssi_signo);
		}
		if (waitpid(pid, status, WNOHANG) == pid)
			return 0;
		int error = events_pages(AT_ONCE, PAGE_FILLED, write_page, stream);
		if (error < 0)
			return error;
	}
}

static int record(struct stream *stream, char **command, int *status)
{
	sigset_t watched, before;
	sigemptyset(&watched);
	sigaddset(&watched, SIGCHLD);
	sigaddset(&watched, SIGTERM);
	sigaddset(&watched, SIGHUP);
	sigaddset(&watched, SIGINT);
	sigaddset(&watched, SIGQUIT);
	sigprocmask(SIG_BLOCK, &watched, &before);
	signal(SIGPIPE, SIG_IGN);
	int signals = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0)
		return fail(errno, "signals cannot be watched: %s", strerror(errno));
	pid_t pid = start(command, &before);
	if (pid < 0) {
		*status = pid == -ENOENT ? NOT_FOUND : NOT_RUN;
		return fail(-pid, "%s cannot be run: %s", *command, strerror(-pid));
	}
	int ended, error = write_header(stream);
	if (!error)
		error = follow(stream, pid, signals, &ended);
	if (error) {
		/* Who was to have the recording is gone. */
		kill(pid, SIGTERM);
		waitpid(pid, NULL, 0);
		return error;
	}
	events_pause();
	do
		error = events_pages(AT_ONCE, 0, write_page, stream);
	while (error > 0);
	return error ? error : write_end(stream, *status = shell_status(ended));
}

int record_command(int count, char **arguments)
{
	struct stream stream = { .fd = -1 };
	char *end = NULL;
	int at = 0;
	if (count > 0) {
		long fd = strtol(arguments[at++], &end, 10);
		if (*end || end == arguments[0] || fd < 3 || fd > INT16_MAX || fcntl((int)fd, F_SETFD, FD_CLOEXEC))
			end = NULL;
		stream.fd = (int)fd;
	}
	bool all = at < count && !strcmp(arguments[at], "--all");
	at += all;
	if (!end || at + 1 >= count || strcmp(arguments[at], "--")) {
		fprintf(stderr, "usage: kvm-mmu-helper --record FD [--all] -- COMMAND [ARGUMENT]...\n");
		return BAD_USAGE;
	}
	instance_sweep();
	int status = CANNOT_RECORD;
	int error = events_on(all);
	if (!error)
		error = record(&stream, arguments + at + 1, &status);
	if (error)
		fprintf(stderr, "kvm-mmu-helper: %s\n", why);
	events_off();
	return status;
}
