/* SPDX-License-Identifier: MIT */
/*
 * The first and only process of a lab: a kernel under test that boots in an emulator. It loads the modules that the host
 * chose, and then starts programs for the host over one byte stream, a virtio port or else a serial line. When the host lets
 * go of the stream it switches the machine off.
 *
 * The stream carries frames: channel (1 byte), type (1), length (2, little-endian), payload. A channel is a file that is
 * being written or a program that runs. adapter/lab/line.ts is the other end.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

/* What the host has prepared: a line `NAME.ko[ PARAMETERS]` for each module, in the order of loading. */
#define MODULES "/lab/modules"
#define MODULE_FOLDER "/lab/modules.d"

#define CHANNELS 32
#define PAYLOAD_MOST 60000
#define ARGUMENTS_MOST 256
/* How long a virtio port may take to appear once its driver is there, in steps of 10 ms. */
#define PORT_WAITS 200

/* From the host. */
enum { OPEN_FILE = 'F', BYTES = 'B', CLOSE_FILE = 'C', RUN = 'R', INPUT = 'I', END_INPUT = 'E', KILL = 'K' };
/* To the host. */
enum { PROGRESS = 'L', PROBLEM = 'W', READY = 'H', OUTPUT = 'D', ERRORS = 'S', EXIT = 'X', WRITTEN = 'O', REFUSED = 'N' };

static struct channel {
	/* Of a program that runs; 0 where there is none. */
	pid_t pid;
	/* The program's standard output and error; −1 when closed. */
	int out, err;
	/* The program's standard input, or the file that is written. */
	int in;
	/* What its input has not taken yet. */
	uint8_t *pending;
	size_t pending_count;
	bool close_when_drained;
	bool exited;
	int status;
} channels[CHANNELS];

static int line = -1;

static void switch_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void write_all(int fd, const void *data, size_t length)
{
	const uint8_t *at = data;
	while (length) {
		ssize_t written = write(fd, at, length);
		if (written > 0) {
			at += written;
			length -= (size_t)written;
			continue;
		}
		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0 && errno == EAGAIN) {
			struct pollfd wait = { .fd = fd, .events = POLLOUT };
			poll(&wait, 1, -1);
			continue;
		}
		/* The host is gone. */
		switch_off();
	}
}

static void send_frame(int channel, int type, const void *payload, size_t length)
{
	static uint8_t frame[4 + PAYLOAD_MOST];
	frame[0] = (uint8_t)channel;
	frame[1] = (uint8_t)type;
	frame[2] = (uint8_t)length;
	frame[3] = (uint8_t)(length >> 8);
	memcpy(frame + 4, payload, length);
	write_all(line, frame, 4 + length);
}

/* What happens before the line is open is told when it is. */
static char early[16384];

static void __attribute__((format(printf, 2, 3))) tell(int type, const char *format, ...)
{
	char text[1024];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	if (line >= 0) {
		send_frame(0, type, text, strlen(text));
		return;
	}
	size_t used = strlen(early);
	snprintf(early + used, sizeof(early) - used, "%c%s\n", type, text);
	dprintf(STDERR_FILENO, "lab: %s\n", text);
}

static void tell_early(void)
{
	for (char *text = early, *end; *text; text = end + 1) {
		end = strchr(text, '\n');
		*end = 0;
		send_frame(0, *text, text + 1, strlen(text + 1));
	}
}

/* ---- boot */

static void mount_all(void)
{
	static const struct {
		const char *type, *at;
	} mounts[] = {
		{ "devtmpfs", "/dev" }, { "proc", "/proc" },	{ "sysfs", "/sys" },
		{ "tmpfs", "/tmp" },	{ "tmpfs", "/dev/shm" }, { "tracefs", "/sys/kernel/tracing" },
	};
	for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
		mkdir(mounts[i].at, 0755);
		/* A kernel may have mounted it already, or not have tracefs: who needs it says so. */
		if (mount(mounts[i].type, mounts[i].at, mounts[i].type, 0, "") && errno != EBUSY && errno != ENODEV && errno != ENOENT)
			tell(PROBLEM, "%s cannot be mounted: %s", mounts[i].at, strerror(errno));
	}
	/* Memory of guests may ask for large pages (the helper's --page-size). */
	int advise = open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", O_WRONLY | O_CLOEXEC);
	if (advise >= 0) {
		if (write(advise, "advise", 6) < 0)
			tell(PROBLEM, "shmem_enabled cannot be set: %s", strerror(errno));
		close(advise);
	}
	int console = open("/dev/console", O_RDWR);
	if (console >= 0) {
		for (int fd = 0; fd < 3; fd++)
			dup2(console, fd);
		if (console > 2)
			close(console);
	}
}

static void load_modules(void)
{
	char text[512], path[600];
	FILE *list = fopen(MODULES, "re");
	if (!list)
		return;
	while (fgets(text, sizeof(text), list)) {
		text[strcspn(text, "\n")] = 0;
		char *parameters = strchr(text, ' ');
		if (parameters)
			*parameters++ = 0;
		snprintf(path, sizeof(path), MODULE_FOLDER "/%s", text);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, parameters ? parameters : "", 0)) {
			if (fd < 0 || errno != EEXIST)
				tell(PROBLEM, "%s does not load: %s", text, strerror(errno));
		} else
			tell(PROGRESS, "%s%s%s", text, parameters ? " " : "", parameters ? parameters : "");
		if (fd >= 0)
			close(fd);
	}
	fclose(list);
}

static bool has_virtio_ports(void)
{
	struct stat status;
	return !stat("/sys/class/virtio-ports", &status);
}

static int open_line(void)
{
	static const char port[] = "/dev/vport0p1";
	/* The driver makes the port when it has spoken with the device. */
	for (int waits = 0; has_virtio_ports() && waits < PORT_WAITS; waits++) {
		int fd = open(port, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		if (fd >= 0)
			return fd;
		usleep(10000);
	}
	static const char *const serials[] = { "/dev/ttyS1", "/dev/ttyAMA1" };
	for (size_t i = 0; i < sizeof(serials) / sizeof(serials[0]); i++) {
		int fd = open(serials[i], O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
		struct termios modes;
		if (fd < 0)
			continue;
		if (tcgetattr(fd, &modes)) {
			close(fd);
			continue;
		}
		cfmakeraw(&modes);
		cfsetspeed(&modes, B115200);
		tcsetattr(fd, TCSANOW, &modes);
		tell(PROBLEM, "this kernel has no virtio_console: %s is used, which is slow", serials[i]);
		return fd;
	}
	return -1;
}

/* ---- channels */

static void drop_input(struct channel *channel)
{
	if (channel->in >= 0)
		close(channel->in);
	channel->in = -1;
	free(channel->pending);
	channel->pending = NULL;
	channel->pending_count = 0;
	channel->close_when_drained = false;
}

static void feed(struct channel *channel)
{
	while (channel->pending_count) {
		ssize_t written = write(channel->in, channel->pending, channel->pending_count);
		if (written < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (written < 0) {
			drop_input(channel);
			return;
		}
		channel->pending_count -= (size_t)written;
		memmove(channel->pending, channel->pending + written, channel->pending_count);
	}
	if (channel->close_when_drained)
		drop_input(channel);
}

static void refuse(int number, const char *what, const char *name)
{
	char text[512];
	snprintf(text, sizeof(text), "%s%s: %s", what, name, strerror(errno));
	send_frame(number, REFUSED, text, strlen(text));
}

static void open_file(int number, const char *name)
{
	struct channel *channel = &channels[number];
	drop_input(channel);
	channel->in = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
	if (channel->in < 0)
		refuse(number, "cannot write ", name);
}

static void file_bytes(int number, const uint8_t *bytes, size_t length)
{
	struct channel *channel = &channels[number];
	while (channel->in >= 0 && length) {
		ssize_t written = write(channel->in, bytes, length);
		if (written <= 0) {
			refuse(number, "cannot write", "");
			drop_input(channel);
			return;
		}
		bytes += written;
		length -= (size_t)written;
	}
}

/* `payload` is a program and its arguments, each ended by a zero byte. */
static void run(int number, char *payload, size_t length)
{
	struct channel *channel = &channels[number];
	char *arguments[ARGUMENTS_MOST + 1];
	int count = 0, in[2], out[2], err[2];
	for (size_t at = 0; at < length && count < ARGUMENTS_MOST; at += strlen(payload + at) + 1)
		arguments[count++] = payload + at;
	arguments[count] = NULL;
	int pipes = 0;
	errno = EBUSY;
	if (count && !channel->pid)
		pipes = pipe2(in, O_CLOEXEC) ? 0 : pipe2(out, O_CLOEXEC) ? 1 : pipe2(err, O_CLOEXEC) ? 2 : 3;
	pid_t pid = pipes == 3 ? fork() : -1;
	if (pid < 0) {
		refuse(number, "cannot start ", count ? arguments[0] : "nothing");
		for (int i = 0; i < 2; i++) {
			if (pipes > 0)
				close(in[i]);
			if (pipes > 1)
				close(out[i]);
			if (pipes > 2)
				close(err[i]);
		}
		return;
	}
	if (!pid) {
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		dup2(in[0], 0);
		dup2(out[1], 1);
		dup2(err[1], 2);
		execv(arguments[0], arguments);
		dprintf(2, "%s: %s\n", arguments[0], strerror(errno));
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	close(err[1]);
	drop_input(channel);
	channel->in = in[1];
	fcntl(channel->in, F_SETFL, O_NONBLOCK);
	channel->pid = pid;
	channel->out = out[0];
	channel->err = err[0];
	channel->exited = false;
}

static void input(struct channel *channel, const uint8_t *bytes, size_t length)
{
	if (channel->in < 0)
		return;
	uint8_t *more = realloc(channel->pending, channel->pending_count + length);
	if (!more)
		return;
	memcpy(more + channel->pending_count, bytes, length);
	channel->pending = more;
	channel->pending_count += length;
	feed(channel);
}

static void take_frame(int number, int type, uint8_t *payload, size_t length)
{
	if (number >= CHANNELS)
		return;
	struct channel *channel = &channels[number];
	switch (type) {
	case OPEN_FILE:
		open_file(number, (const char *)payload);
		break;
	case BYTES:
		file_bytes(number, payload, length);
		break;
	case CLOSE_FILE:
		if (channel->in >= 0)
			send_frame(number, WRITTEN, "", 0);
		drop_input(channel);
		break;
	case RUN:
		run(number, (char *)payload, length);
		break;
	case INPUT:
		input(channel, payload, length);
		break;
	case END_INPUT:
		channel->close_when_drained = true;
		if (channel->in >= 0)
			feed(channel);
		break;
	case KILL:
		if (channel->pid)
			kill(channel->pid, SIGKILL);
		break;
	}
}

/* ---- the loop */

static void read_line(void)
{
	/* One more byte, so that text in a payload can be ended by a zero. */
	static uint8_t buffer[4 + 65536];
	static size_t count;
	ssize_t got = read(line, buffer + count, sizeof(buffer) - 1 - count);
	if (got == 0)
		switch_off();
	if (got < 0)
		return;
	count += (size_t)got;
	size_t at = 0;
	while (count - at >= 4) {
		size_t length = buffer[at + 2] | (size_t)buffer[at + 3] << 8;
		if (count - at < 4 + length)
			break;
		uint8_t saved = buffer[at + 4 + length];
		buffer[at + 4 + length] = 0;
		take_frame(buffer[at], buffer[at + 1], buffer + at + 4, length);
		buffer[at + 4 + length] = saved;
		at += 4 + length;
	}
	memmove(buffer, buffer + at, count - at);
	count -= at;
}

/* Passes on what a program says; at the end of its output closes that. */
static void relay(int number, int type, int *fd)
{
	static uint8_t bytes[PAYLOAD_MOST];
	ssize_t got = read(*fd, bytes, sizeof(bytes));
	if (got > 0) {
		send_frame(number, type, bytes, (size_t)got);
		return;
	}
	if (got < 0 && errno == EINTR)
		return;
	close(*fd);
	*fd = -1;
}

static void reap(void)
{
	int status;
	for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
		for (int i = 0; i < CHANNELS; i++) {
			if (channels[i].pid == pid) {
				channels[i].exited = true;
				channels[i].status = status;
			}
		}
	}
	/* Its last words come first. */
	for (int i = 0; i < CHANNELS; i++) {
		struct channel *channel = &channels[i];
		if (!channel->pid || !channel->exited || channel->out >= 0 || channel->err >= 0)
			continue;
		char words[64];
		if (WIFSIGNALED(channel->status))
			snprintf(words, sizeof(words), "signal %s", sigabbrev_np(WTERMSIG(channel->status)));
		else
			snprintf(words, sizeof(words), "exit status %d", WEXITSTATUS(channel->status));
		drop_input(channel);
		channel->pid = 0;
		send_frame(i, EXIT, words, strlen(words));
	}
}

static void on_child(int signal)
{
	(void)signal;
}

static void loop(void)
{
	sigset_t children, none;
	sigemptyset(&none);
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	sigprocmask(SIG_BLOCK, &children, NULL);
	for (;;) {
		struct pollfd fds[1 + 3 * CHANNELS];
		int owners[1 + 3 * CHANNELS], kinds[1 + 3 * CHANNELS], count = 1;
		fds[0] = (struct pollfd){ .fd = line, .events = POLLIN };
		for (int i = 0; i < CHANNELS; i++) {
			const struct channel *channel = &channels[i];
			if (!channel->pid)
				continue;
			const int each[] = { channel->out, channel->err, channel->pending_count ? channel->in : -1 };
			for (int kind = 0; kind < 3; kind++) {
				if (each[kind] < 0)
					continue;
				owners[count] = i;
				kinds[count] = kind;
				fds[count++] = (struct pollfd){ .fd = each[kind], .events = kind == 2 ? POLLOUT : POLLIN };
			}
		}
		if (ppoll(fds, (nfds_t)count, NULL, &none) > 0) {
			if (fds[0].revents & POLLHUP)
				switch_off();
			if (fds[0].revents)
				read_line();
			for (int i = 1; i < count; i++) {
				struct channel *channel = &channels[owners[i]];
				if (!fds[i].revents)
					continue;
				if (kinds[i] == 0)
					relay(owners[i], OUTPUT, &channel->out);
				else if (kinds[i] == 1)
					relay(owners[i], ERRORS, &channel->err);
				else if (channel->in >= 0)
					feed(channel);
			}
		}
		reap();
	}
}

int main(void)
{
	struct sigaction child = { .sa_handler = on_child };
	sigaction(SIGCHLD, &child, NULL);
	signal(SIGPIPE, SIG_IGN);
	for (int i = 0; i < CHANNELS; i++)
		channels[i] = (struct channel){ .out = -1, .err = -1, .in = -1 };
	mount_all();
	load_modules();
	int fd = open_line();
	if (fd < 0) {
		dprintf(STDERR_FILENO, "lab: no virtio port and no second serial line: nothing reaches the host\n");
		switch_off();
	}
	line = fd;
	tell_early();
	struct utsname names;
	uname(&names);
	tell(READY, "%s %s", names.release, access("/dev/kvm", F_OK) ? "" : "kvm");
	loop();
	return 0;
}
