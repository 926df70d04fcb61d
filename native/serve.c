/* SPDX-License-Identifier: MIT */
/* Waits for clients, for what they send and for what vCPUs do. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "helper.h"
#include "server.h"

/* How often a running vCPU is looked at for what its guest has changed while its handlers are watched, in milliseconds. */
#define LOOK_MS 10
/* A step takes at most this long before it is given up, in milliseconds. */
#define STEP_MS 200

volatile sig_atomic_t told_to_end;
/* Readable from then on: a signal that comes before a wait begins is not waited out. */
static int end_event = -1;

static void on_end(int signal)
{
	int before = errno;
	u64 one = 1;
	(void)signal;
	told_to_end = 1;
	if (write(end_event, &one, 8) < 0)
		errno = before;
}

/* ---- one client */

/* What has to be looked at even if nothing happens; how long that may take at most, in milliseconds, or −1. */
static int tick(struct server *server)
{
	struct vm *vm = server->vm;
	int next = uffd_release_overdue(vm) ? 5 : -1;
	pthread_mutex_lock(&vm->lock);
	for (int i = 0; i < vm->vcpu_count; i++) {
		struct vcpu *vcpu = vm->vcpus[i];
		if (vcpu->state != VCPU_RUNNING)
			continue;
		bool hunts = vm_watches_handlers(vm);
		bool is_late = vcpu->stepping && vcpu->step_from == vcpu->step_to && now_ms() - vcpu->since > STEP_MS;
		if (hunts || is_late) {
			vcpu->recheck = true;
			vcpu_kick(vcpu);
		}
		if (hunts || vcpu->stepping)
			next = next < 0 || next > LOOK_MS ? LOOK_MS : next;
	}
	pthread_mutex_unlock(&vm->lock);
	return next;
}

/* Serves one client. */
static void converse(struct server *server)
{
	struct vm *vm = server->vm;
	while (!server->closed && !server->ending && !told_to_end) {
		struct pollfd fds[] = { { .fd = server->in, .events = POLLIN },
					{ .fd = vm->event, .events = POLLIN },
					{ .fd = uffd_fd, .events = POLLIN },
					{ .fd = end_event, .events = POLLIN } };
		poll(fds, 4, tick(server));
		if (fds[2].revents & POLLIN)
			uffd_read(vm);
		if (fds[1].revents & POLLIN) {
			u64 count;
			if (read(vm->event, &count, 8) < 0 && errno != EAGAIN)
				break;
			report_console(server);
			report_stops(server);
		}
		if (fds[0].revents & (POLLIN | POLLHUP | POLLERR)) {
			u8 bytes[65536];
			ssize_t got = read(server->in, bytes, sizeof(bytes));
			if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN))
				server->closed = true;
			else if (got > 0)
				feed(server, bytes, (size_t)got);
		}
	}
}

/* ---- one after the other */

static int listen_at(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(address.sun_path))
		return fail(ENAMETOOLONG, "--listen %s: a socket's path has at most %zu bytes", path,
			    sizeof(address.sun_path) - 1);
	strcpy(address.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fail(errno, "no socket: %s", strerror(errno));
	struct stat status;
	if (!lstat(path, &status)) {
		if (!S_ISSOCK(status.st_mode)) {
			close(fd);
			return fail(EEXIST, "--listen %s: there is a file of that name, and it is no socket", path);
		}
		if (!connect(fd, (struct sockaddr *)&address, sizeof(address))) {
			close(fd);
			return fail(EADDRINUSE, "--listen %s: another helper listens there", path);
		}
		unlink(path);
	}
	mode_t before = umask(0177);
	int error = bind(fd, (struct sockaddr *)&address, sizeof(address)) ? errno : 0;
	umask(before);
	if (!error && listen(fd, 1))
		error = errno;
	if (!error)
		return fd;
	close(fd);
	return fail(error, "--listen %s: %s", path, strerror(error));
}

static void stand_still(struct vm *vm)
{
	for (int waits = 0; anyone_runs(vm) && waits < 1000; waits++) {
		pause_all(vm);
		uffd_read(vm);
		uffd_release_overdue(vm);
		usleep(1000);
	}
}

int serve(struct vm *vm, const char *listen_path)
{
	static struct server server;
	end_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct sigaction end = { .sa_handler = on_end };
	sigaction(SIGTERM, &end, NULL);
	sigaction(SIGINT, &end, NULL);
	sigaction(SIGHUP, &end, NULL);
	signal(SIGPIPE, SIG_IGN);
	server = (struct server){ .vm = vm };
	if (!listen_path) {
		/* The protocol has standard output to itself. */
		server.in = STDIN_FILENO;
		server.out = STDOUT_FILENO;
		converse(&server);
		return 0;
	}
	int listener = listen_at(listen_path);
	if (listener < 0)
		return listener;
	fprintf(stderr, "listening at %s\n", listen_path);
	while (!server.ending && !told_to_end) {
		struct pollfd fds[] = { { .fd = listener, .events = POLLIN }, { .fd = end_event, .events = POLLIN } };
		if (poll(fds, 2, -1) < 0 || !(fds[0].revents & POLLIN))
			continue;
		int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (client < 0) {
			if (errno == EINTR)
				continue;
			break;
		}
		bool detached;
		server.in = server.out = client;
		server.closed = false;
		server.parser.state = OUTSIDE;
		converse(&server);
		detached = anyone_runs(vm) && !vm->non_stop && !server.waiting;
		close(client);
		if (!detached)
			stand_still(vm);
		forget_client(&server);
	}
	unlink(listen_path);
	return 0;
}
