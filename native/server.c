/* SPDX-License-Identifier: MIT */
/* The server's side of the GDB remote serial protocol. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "events.h"
#include "helper.h"
#include "server.h"

/* ---- sending */

static void send_bytes(struct server *server, const char *bytes, size_t length)
{
	while (length && !server->closed) {
		ssize_t done = write(server->out, bytes, length);
		if (done < 0 && (errno == EINTR || errno == EAGAIN)) {
			struct pollfd out = { .fd = server->out, .events = POLLOUT };
			poll(&out, 1, 1000);
			if (told_to_end)
				return;
			continue;
		}
		if (done < 0) {
			server->closed = true;
			return;
		}
		bytes += done;
		length -= (size_t)done;
	}
}

static void send_packet(struct server *server, char start, const char *content, size_t length)
{
	char *frame = malloc(packet_room(length));
	if (!frame)
		return;
	send_bytes(server, frame, packet_frame(start, content, length, frame));
	free(frame);
}

static void send_text(struct server *server, const char *words)
{
	send_packet(server, '$', words, strlen(words));
}

static void send_error(struct server *server, int error)
{
	char words[600];
	if (server->events)
		snprintf(words, sizeof(words), "E.%s", why);
	else
		snprintf(words, sizeof(words), "E%02x", (unsigned)-error & 0xff);
	send_text(server, words);
}

/* ---- stops */

static void stop_reply(const struct server *server, const struct vcpu *vcpu, struct text *reply)
{
	if (vcpu->has_exited) {
		text_add(reply, "W%02x", vcpu->exit_code);
		return;
	}
	text_add(reply, "T%02xthread:%x;", (unsigned)vcpu->signal, (unsigned)vcpu->id + 1);
	if (!strncmp(vcpu->stop, "reason=breakpoint", 17)) {
		struct kvm_regs regs;
		struct kvm_sregs sregs;
		const struct breakpoint *point = NULL;
		if (!ioctl(vcpu->fd, KVM_GET_REGS, &regs) && !ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
			point = breakpoint_here(server->vm, &sregs, regs.rip);
		if (point)
			text_add(reply, "%s:;", point->hardware ? "hwbreak" : "swbreak");
	}
	if (server->events)
		text_add(reply, "kvm:%s;", vcpu->stop);
}

static void send_stop(struct server *server, char start, const char *prefix, struct vcpu *vcpu)
{
	struct text reply = { 0 };
	text_add(&reply, "%s", prefix);
	stop_reply(server, vcpu, &reply);
	if (reply.at)
		send_packet(server, start, reply.at, reply.length);
	text_free(&reply);
}

static struct vcpu *unreported(struct vm *vm)
{
	for (int i = 0; i < vm->vcpu_count; i++) {
		if (vm->vcpus[i]->state == VCPU_STOPPED && !vm->vcpus[i]->reported)
			return vm->vcpus[i];
	}
	return NULL;
}

bool anyone_runs(struct vm *vm)
{
	for (int i = 0; i < vm->vcpu_count; i++) {
		if (vm->vcpus[i]->state == VCPU_RUNNING)
			return true;
	}
	return false;
}

void pause_all(struct vm *vm)
{
	for (int i = 0; i < vm->vcpu_count; i++) {
		if (vm->vcpus[i]->state == VCPU_RUNNING)
			vcpu_pause(vm->vcpus[i]);
	}
}

void report_stops(struct server *server)
{
	struct vm *vm = server->vm;
	if (server->closed)
		return;
	if (vm->non_stop) {
		struct vcpu *vcpu = server->notified ? NULL : unreported(vm);
		if (!vcpu)
			return;
		server->notified = vcpu;
		vcpu->reported = true;
		report_console(server);
		send_stop(server, '%', "Stop:", vcpu);
		return;
	}
	if (!server->waiting)
		return;
	if (!server->reporter)
		server->reporter = unreported(vm);
	if (!server->reporter)
		return;
	if (anyone_runs(vm)) {
		pause_all(vm);
		return;
	}
	/* Those that stopped only because one did have nothing to tell. */
	for (int i = 0; i < vm->vcpu_count; i++) {
		struct vcpu *vcpu = vm->vcpus[i];
		if (vcpu == server->reporter || !strncmp(vcpu->stop, "reason=pause", 12))
			vcpu->reported = true;
	}
	report_console(server);
	server->waiting = false;
	server->selected = server->reporter->id;
	send_stop(server, '$', "", server->reporter);
	server->reporter = NULL;
}

void report_console(struct server *server)
{
	struct vm *vm = server->vm;
	/* gdb prints output only while it waits for a stop. */
	if (server->closed || (!server->events && !server->waiting))
		return;
	pthread_mutex_lock(&vm->lock);
	struct text said = vm->console;
	vm->console = (struct text){ 0 };
	pthread_mutex_unlock(&vm->lock);
	for (size_t done = 0; done < said.length; done += 4096) {
		struct text out = { 0 };
		size_t some = said.length - done < 4096 ? said.length - done : 4096;
		text_add(&out, vm->non_stop ? "KvmConsole:" : "O");
		text_hex(&out, said.at + done, some);
		send_packet(server, vm->non_stop ? '%' : '$', out.at, out.length);
		text_free(&out);
	}
	text_free(&said);
}

/* ---- packets */

static struct vcpu *selected(struct server *server)
{
	return server->vm->vcpus[server->selected];
}

/* Registers and memory of a running vCPU cannot be had. */
static struct vcpu *selected_stopped(struct server *server)
{
	struct vcpu *vcpu = selected(server);
	if (vcpu->state == VCPU_RUNNING) {
		fail(EBUSY, "vCPU %d is running: stop it first", vcpu->id);
		send_error(server, -EBUSY);
		return NULL;
	}
	return vcpu;
}

static int thread_number(struct server *server, const char *text, int *id)
{
	u64 value;
	if (!strcmp(text, "-1") || !strcmp(text, "0") || !*text) {
		*id = server->selected;
		return 0;
	}
	if (!parse_hex(&text, &value) || *text || !value || value > (u64)server->vm->vcpu_count)
		return fail(EINVAL, "there is no such thread: vCPU numbers plus one are, from 1 to %d",
			    server->vm->vcpu_count);
	*id = (int)value - 1;
	return 0;
}

static bool from_hex(const char *text, u8 *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++) {
		const char digits[3] = { text[2 * i], text[2 * i] ? text[2 * i + 1] : 0, 0 };
		const char *at = digits;
		u64 value;
		if (!parse_hex(&at, &value) || at != digits + 2)
			return false;
		bytes[i] = (u8)value;
	}
	return true;
}

static void read_registers(struct server *server, int number)
{
	u8 bytes[1024];
	size_t offset = 0, size = registers_size();
	struct vcpu *vcpu = selected_stopped(server);
	if (!vcpu)
		return;
	int error = number >= 0 ? register_place(number, &offset, &size) : 0;
	if (error)
		fail(-error, "there is no register %d", number);
	else
		error = registers_read(vcpu, bytes);
	if (error)
		send_error(server, error);
	else
		text_hex(&server->reply, bytes + offset, size);
}

static void write_registers(struct server *server, int number, const char *hex)
{
	u8 bytes[1024];
	size_t offset = 0, size = registers_size();
	struct vcpu *vcpu = selected_stopped(server);
	if (!vcpu)
		return;
	int error = number >= 0 ? register_place(number, &offset, &size) : 0;
	if (error)
		fail(-error, "there is no register %d", number);
	else
		error = registers_read(vcpu, bytes);
	if (!error && (strlen(hex) != 2 * size || !from_hex(hex, bytes + offset, size)))
		error = fail(EINVAL, "%zu bytes of a register are wanted, in hexadecimal", size);
	if (!error)
		error = registers_write(vcpu, bytes);
	if (error)
		send_error(server, error);
	else
		text_add(&server->reply, "OK");
}

/* `ADDR,LENGTH`, and what `end` says behind it. */
static bool parse_range(const char **at, u64 *address, u64 *length, char end)
{
	return parse_hex(at, address) && *(*at)++ == ',' && parse_hex(at, length) && *(*at)++ == end;
}

/* Memory by virtual address needs the registers of a vCPU that has stopped. */
static bool memory_context(struct server *server, struct kvm_sregs *sregs)
{
	if (server->physical)
		return true;
	struct vcpu *vcpu = selected_stopped(server);
	if (!vcpu)
		return false;
	if (!ioctl(vcpu->fd, KVM_GET_SREGS, sregs))
		return true;
	send_error(server, fail(errno, "registers cannot be read: %s", strerror(errno)));
	return false;
}

static size_t read_some(struct server *server, const struct kvm_sregs *sregs, u64 address, u8 *bytes, size_t length)
{
	struct vm *vm = server->vm;
	size_t done = 0;
	while (done < length) {
		size_t some = PAGE - (address + done) % PAGE;
		u64 gpa = address + done;
		if (some > length - done)
			some = length - done;
		if (!server->physical && !memory_translate(vm, sregs, address + done, &gpa))
			break;
		size_t got = memory_read(vm, gpa, bytes + done, some);
		/* Memory as the guest has it. */
		plants_hide(vm, gpa, bytes + done, got);
		done += got;
		if (got < some)
			break;
	}
	return done;
}

static void read_memory(struct server *server, const char *text, bool binary)
{
	u64 address, length;
	struct kvm_sregs sregs;
	if (!parse_range(&text, &address, &length, 0)) {
		send_error(server, fail(EINVAL, "ADDRESS,LENGTH is wanted, in hexadecimal"));
		return;
	}
	if (!memory_context(server, &sregs))
		return;
	if (length > PACKET_MAX / 2 - 16)
		length = PACKET_MAX / 2 - 16;
	u8 *bytes = malloc(length + 1);
	if (!bytes)
		return;
	size_t done = read_some(server, &sregs, address, bytes, length);
	if (!done && length)
		send_error(server, fail(EFAULT, "nothing is mapped at 0x%llx", (unsigned long long)address));
	else if (binary) {
		text_add(&server->reply, "b");
		text_bytes(&server->reply, bytes, done);
	} else if (done)
		text_hex(&server->reply, bytes, done);
	else
		send_text(server, "");
	free(bytes);
}

static void write_memory(struct server *server, const char *text, size_t length_left, bool binary)
{
	u64 address, length;
	struct kvm_sregs sregs;
	const char *at = text;
	bool good = parse_range(&at, &address, &length, ':');
	size_t left = good ? length_left - (size_t)(at - text) : 0;
	if (!good || length > PACKET_MAX || left != (binary ? length : 2 * length)) {
		send_error(server, fail(EINVAL, "ADDRESS,LENGTH:BYTES is wanted, with as many bytes as LENGTH says"));
		return;
	}
	if (!memory_context(server, &sregs))
		return;
	u8 *bytes = malloc(length + 1);
	if (!bytes)
		return;
	if (binary)
		memcpy(bytes, at, length);
	if (!binary && !from_hex(at, bytes, length))
		send_error(server, fail(EINVAL, "the bytes are not hexadecimal"));
	else {
		size_t done = server->physical ? memory_write(server->vm, address, bytes, length) :
						 memory_write_virtual(server->vm, &sregs, address, bytes, length);
		if (done < length)
			send_error(server, fail(EFAULT, "nothing is mapped at 0x%llx", (unsigned long long)(address + done)));
		else
			text_add(&server->reply, "OK");
	}
	free(bytes);
}

static void change_breakpoint(struct server *server, const char *packet)
{
	const char *at = packet + 1;
	u64 kind, address, length;
	if (!parse_hex(&at, &kind) || *at++ != ',' || !parse_hex(&at, &address) || *at++ != ',' || !parse_hex(&at, &length)) {
		send_error(server, fail(EINVAL, "TYPE,ADDRESS,KIND is wanted"));
		return;
	}
	/* No data watchpoints: an empty answer says that they are not known. */
	if (kind > 1) {
		send_text(server, "");
		return;
	}
	struct vcpu *vcpu = *packet == 'Z' && !kind ? selected_stopped(server) : selected(server);
	if (!vcpu)
		return;
	bool running = anyone_runs(server->vm);
	if (running)
		vm_quiesce(server->vm);
	int error = *packet == 'Z' ? breakpoint_insert(server->vm, vcpu, kind, address) :
				     breakpoint_remove(server->vm, kind, address);
	if (running) {
		pthread_mutex_lock(&server->vm->lock);
		for (int i = 0; i < server->vm->vcpu_count; i++)
			server->vm->vcpus[i]->recheck = true;
		pthread_mutex_unlock(&server->vm->lock);
		vm_unquiesce(server->vm);
	}
	if (error)
		send_error(server, error);
	else
		text_add(&server->reply, "OK");
}

/* ---- moving */

/* What is asked of a thread: a letter, 0 for nothing; and the addresses of `r`. */
struct action {
	char letter;
	u64 from;
	u64 to;
};

/* The action for a thread: the first that names it, or all. */
static struct action action_for(const char *actions, int id)
{
	while (*actions == ';') {
		struct action action = { .letter = actions[1] };
		const char *at = actions + 2;
		u64 value;
		/* The signal of C and S. */
		if (action.letter == 'C' || action.letter == 'S')
			parse_hex(&at, &value);
		if (action.letter == 'r' && (!parse_hex(&at, &action.from) || *at++ != ',' || !parse_hex(&at, &action.to)))
			action.letter = '?';
		bool matches = true;
		if (*at == ':') {
			at++;
			if (!strncmp(at, "-1", 2))
				at += 2;
			else
				matches = parse_hex(&at, &value) && (!value || value == (u64)id + 1);
		}
		if (matches)
			return action;
		if (*at != ';')
			break;
		actions = at;
	}
	return (struct action){ 0 };
}

static void move(struct server *server, const char *actions)
{
	struct vm *vm = server->vm;
	bool any = false;
	/* Stops that the client has not heard of come first. */
	bool pending = !vm->non_stop && unreported(vm);
	for (int i = 0; i < vm->vcpu_count; i++) {
		struct vcpu *vcpu = vm->vcpus[i];
		struct action action = action_for(actions, i);
		switch (action.letter) {
		case 'c':
		case 'C':
		case 's':
		case 'S':
		case 'r':
			any = true;
			if (vcpu->state == VCPU_RUNNING || pending || (vm->non_stop && !vcpu->reported))
				break;
			bool step = action.letter == 's' || action.letter == 'S' || action.letter == 'r';
			int error = vcpu_resume(vcpu, step, action.from, action.to);
			if (error) {
				send_error(server, error);
				return;
			}
			break;
		case 't':
			any = true;
			if (vcpu->state == VCPU_RUNNING)
				vcpu_pause(vcpu);
			break;
		case 0:
			break;
		default:
			send_error(server, fail(EINVAL, "vCont does not know “%c”: c, C, s, S, r and t are", action.letter));
			return;
		}
	}
	if (!any) {
		send_error(server, fail(EINVAL, "“vCont%s” names no thread that there is", actions));
		return;
	}
	if (vm->non_stop) {
		text_add(&server->reply, "OK");
		return;
	}
	server->waiting = true;
	report_stops(server);
}

static void acknowledge_stop(struct server *server)
{
	struct vm *vm = server->vm;
	struct vcpu *next = unreported(vm);
	server->notified = next;
	if (!next) {
		text_add(&server->reply, "OK");
		return;
	}
	next->reported = true;
	report_console(server);
	stop_reply(server, next, &server->reply);
}

static void query_stop(struct server *server)
{
	struct vm *vm = server->vm;
	if (!vm->non_stop && anyone_runs(vm)) {
		/* As a machine that was left running does: the answer is its stop. */
		server->waiting = true;
		pause_all(vm);
		return;
	}
	if (!vm->non_stop) {
		for (int i = 0; i < vm->vcpu_count; i++)
			vm->vcpus[i]->reported = true;
		stop_reply(server, selected(server), &server->reply);
		return;
	}
	/* Every stopped thread is told anew, the first here, the others by vStopped. */
	for (int i = 0; i < vm->vcpu_count; i++)
		vm->vcpus[i]->reported = vm->vcpus[i]->state != VCPU_STOPPED;
	acknowledge_stop(server);
}

void forget_client(struct server *server)
{
	struct vm *vm = server->vm;
	bool running = anyone_runs(vm);
	if (running)
		vm_quiesce(vm);
	vm->stops = 0;
	vm->handler = 0;
	trace_off();
	events_off();
	uffd_untrap_all(vm);
	breakpoint_remove_all(vm);
	/* What is armed in the processors goes with the next entry. */
	pthread_mutex_lock(&vm->lock);
	for (int i = 0; i < vm->vcpu_count; i++)
		vm->vcpus[i]->recheck = true;
	pthread_mutex_unlock(&vm->lock);
	if (running)
		vm_unquiesce(vm);
	vm->non_stop = false;
	server->no_ack = server->events = server->physical = server->waiting = false;
	server->reporter = server->notified = NULL;
	server->selected = 0;
}

static void detach(struct server *server)
{
	struct vm *vm = server->vm;
	forget_client(server);
	for (int i = 0; i < vm->vcpu_count; i++) {
		if (vm->vcpus[i]->state == VCPU_STOPPED)
			vcpu_resume(vm->vcpus[i], false, 0, 0);
	}
	send_text(server, "OK");
	server->closed = true;
}

/* ---- queries */

static void transfer(struct server *server, const char *text)
{
	u64 offset, length;
	const char *at = strchr(text, ':');
	if (!at || strncmp(text, "target.xml:", 11)) {
		send_text(server, "E00");
		return;
	}
	at++;
	if (!parse_range(&at, &offset, &length, 0)) {
		send_error(server, fail(EINVAL, "OFFSET,LENGTH is wanted"));
		return;
	}
	size_t size = strlen(target_description);
	if (offset > size)
		offset = size;
	if (length > size - offset)
		length = size - offset;
	text_add(&server->reply, "%c", offset + length < size ? 'm' : 'l');
	text_bytes(&server->reply, target_description + offset, length);
}

static void monitor(struct server *server, const char *hex)
{
	char command[512];
	size_t length = strlen(hex) / 2;
	if (strlen(hex) % 2 || length >= sizeof(command) || !from_hex(hex, (u8 *)command, length)) {
		send_error(server, fail(EINVAL, "a command of at most %zu bytes is wanted, in hexadecimal", sizeof(command) - 1));
		return;
	}
	command[length] = 0;
	struct text answer = { 0 };
	int done = vendor_packet(server->vm, command, &answer);
	if (done < 0) {
		text_free(&answer);
		text_add(&answer, "%s", why);
	} else if (!done)
		text_add(&answer, "Packets of the helper's protocol can be given here, such as qKvm.Info, qKvm.Stats,\n"
				  "QKvm.Stop:guest-pf,mmio or vKvm.Trap:GPA,SIZE,touch; PROTOCOL.md lists them.");
	text_add(&answer, "\n");
	text_hex(&server->reply, answer.at, answer.length);
	text_free(&answer);
}

static void query(struct server *server, const char *packet)
{
	struct vm *vm = server->vm;
	int id;
	if (!strncmp(packet, "qSupported", 10)) {
		text_add(&server->reply,
			 "PacketSize=%x;QStartNoAckMode+;QNonStop+;vContSupported+;swbreak+;hwbreak+;binary-upload+;qXfer:features:read+;kvm-mmu+",
			 PACKET_MAX);
	} else if (!strncmp(packet, "qXfer:features:read:", 20))
		transfer(server, packet + 20);
	else if (!strcmp(packet, "qC"))
		text_add(&server->reply, "QC%x", (unsigned)server->selected + 1);
	else if (!strcmp(packet, "qfThreadInfo")) {
		for (int i = 0; i < vm->vcpu_count; i++)
			text_add(&server->reply, "%c%x", i ? ',' : 'm', (unsigned)i + 1);
	} else if (!strcmp(packet, "qsThreadInfo"))
		text_add(&server->reply, "l");
	else if (!strncmp(packet, "qThreadExtraInfo,", 17)) {
		char words[300];
		if (thread_number(server, packet + 17, &id)) {
			send_error(server, -EINVAL);
			return;
		}
		const struct vcpu *vcpu = vm->vcpus[id];
		snprintf(words, sizeof(words), "vCPU %d %s", id, vcpu->state == VCPU_RUNNING ? "running" : vcpu->stop);
		text_hex(&server->reply, words, strlen(words));
	} else if (!strncmp(packet, "qAttached", 9))
		text_add(&server->reply, "1");
	else if (!strncmp(packet, "qRcmd,", 6))
		monitor(server, packet + 6);
	else if (!strcmp(packet, "qqemu.PhyMemMode"))
		text_add(&server->reply, "%d", server->physical);
	else if (!strncmp(packet, "qKvm.", 5)) {
		int done = vendor_packet(vm, packet, &server->reply);
		if (done < 0) {
			text_free(&server->reply);
			send_error(server, done);
		} else if (!done)
			send_text(server, "");
	} else
		send_text(server, "");
}

static bool flag_value(const char *packet, const char *prefix, bool *value)
{
	size_t length = strlen(prefix);
	if (strncmp(packet, prefix, length) || (packet[length] != '0' && packet[length] != '1') || packet[length + 1])
		return false;
	*value = packet[length] == '1';
	return true;
}

static void set(struct server *server, const char *packet)
{
	bool *physical = &server->physical, *events = &server->events, *non_stop = &server->vm->non_stop;
	if (!strcmp(packet, "QStartNoAckMode")) {
		send_text(server, "OK");
		server->no_ack = true;
	} else if (flag_value(packet, "QNonStop:", non_stop) || flag_value(packet, "Qqemu.PhyMemMode:", physical) ||
		   flag_value(packet, "QKvm.Events:", events))
		text_add(&server->reply, "OK");
	else {
		int done = vendor_packet(server->vm, packet, &server->reply);
		if (done < 0)
			send_error(server, done);
		else if (!done)
			send_text(server, "");
	}
}

static void verb(struct server *server, const char *packet)
{
	if (!strcmp(packet, "vCont?"))
		text_add(&server->reply, "vCont;c;C;s;S;t;r");
	else if (!strncmp(packet, "vCont", 5))
		move(server, packet + 5);
	else if (!strcmp(packet, "vStopped"))
		acknowledge_stop(server);
	else if (!strncmp(packet, "vKill", 5)) {
		send_text(server, "OK");
		server->ending = true;
	} else {
		int done = vendor_packet(server->vm, packet, &server->reply);
		if (done < 0)
			send_error(server, done);
		else if (!done)
			send_text(server, "");
	}
}

static void handle(struct server *server, const char *packet, size_t length)
{
	const char *at = packet + 1;
	u64 number;
	int id;
	text_free(&server->reply);
	switch (*packet) {
	case '?':
		query_stop(server);
		break;
	case 'g':
		read_registers(server, -1);
		break;
	case 'G':
		write_registers(server, -1, at);
		break;
	case 'p':
	case 'P':
		if (!parse_hex(&at, &number) || number > 0xffff || *at != (*packet == 'P' ? '=' : 0))
			send_error(server, fail(EINVAL, "a register's number is wanted"));
		else if (*packet == 'p')
			read_registers(server, (int)number);
		else
			write_registers(server, (int)number, at + 1);
		break;
	case 'm':
	case 'x':
		read_memory(server, at, *packet == 'x');
		break;
	case 'M':
	case 'X':
		write_memory(server, at, length - 1, *packet == 'X');
		break;
	case 'Z':
	case 'z':
		change_breakpoint(server, packet);
		break;
	case 'H':
		if ((*at != 'g' && *at != 'c') || thread_number(server, at + 1, &id))
			send_error(server, -EINVAL);
		else {
			if (*at == 'g')
				server->selected = id;
			text_add(&server->reply, "OK");
		}
		break;
	case 'T':
		if (thread_number(server, at, &id))
			send_error(server, -EINVAL);
		else
			text_add(&server->reply, "OK");
		break;
	case 'D':
		detach(server);
		return;
	case 'k':
		server->ending = true;
		return;
	case 'q':
		query(server, packet);
		break;
	case 'Q':
		set(server, packet);
		break;
	case 'v':
		verb(server, packet);
		break;
	default:
		send_text(server, "");
	}
	if (server->reply.length)
		send_packet(server, '$', server->reply.at, server->reply.length);
	text_free(&server->reply);
}

void feed(struct server *server, const u8 *bytes, size_t length)
{
	for (size_t i = 0; i < length && !server->closed && !server->ending; i++) {
		switch (packet_feed(&server->parser, bytes[i])) {
		case PACKET_READY:
			if (!server->no_ack)
				send_bytes(server, "+", 1);
			handle(server, server->parser.content, server->parser.length);
			break;
		case PACKET_BAD:
			send_bytes(server, "-", 1);
			break;
		case PACKET_INTERRUPT:
			pause_all(server->vm);
			break;
		case PACKET_NONE:
		case PACKET_ACK:
		case PACKET_NAK:
			break;
		}
	}
}
