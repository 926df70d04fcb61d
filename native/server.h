/* SPDX-License-Identifier: MIT */
/* One client's conversation (server.c), and the loop that it is held in (serve.c). */
#ifndef SERVER_H
#define SERVER_H

#include <signal.h>

#include "helper.h"
#include "packet.h"

struct server {
	struct vm *vm;
	int in;
	int out;
	/* No client, or one that has gone. */
	bool closed;
	bool ending;
	bool no_ack;
	/* The client asked for what is ours: reasons, words, console notifications. */
	bool events;
	/* Memory packets are by physical address. */
	bool physical;
	/* The thread of `g`, `m` and the like. */
	int selected;
	/* All-stop: a resume that has not been answered yet; and who will be named in the answer. */
	bool waiting;
	struct vcpu *reporter;
	/* Non-stop: whose stop was notified last and awaits `vStopped`. */
	struct vcpu *notified;
	struct text reply;
	struct packet_parser parser;
};

/* SIGTERM, SIGINT or SIGHUP has come. */
extern volatile sig_atomic_t told_to_end;

bool anyone_runs(struct vm *vm);
void pause_all(struct vm *vm);
/* Takes what a client has sent, and answers the packets that it completes. */
void feed(struct server *server, const u8 *bytes, size_t length);
/* Tells the client of vCPUs that have stopped, as its mode wants it. What they said before they stopped comes first. */
void report_stops(struct server *server);
/* Tells it what the guest has written to its console. */
void report_console(struct server *server);
/* Its client has gone: what it asked for is undone, the machine stays. */
void forget_client(struct server *server);

#endif
