/* SPDX-License-Identifier: MIT */
/*
 * Instances of tracefs: trace buffers of a process's own, with events of its own choice, which no other tracing notices. One is
 * called kvm-mmu-helper-PID, with a word behind it where a process has several, so that what a killed process leaves behind
 * is told from what is in use.
 */
#ifndef INSTANCE_H
#define INSTANCE_H

#include <stdbool.h>
#include <stddef.h>

#include "helper.h"

/* The largest page of a trace buffer that is read at once; a read gives one page at most. */
#define PAGE_MOST 65536
/* What records' times are told by: nanoseconds, the same for all CPUs. */
#define TRACE_CLOCK "mono"

struct instance {
	/* Its folder; empty while there is none. */
	char path[96];
	/* A file in it: as long as one is open nobody else can remove the instance. −1 while there is none. */
	int hold;
};

/* Where tracefs is mounted; NULL when nowhere. */
const char *tracefs(void);
/* Whether numbers of processes are those that tracepoints tell. */
bool in_first_pid_namespace(void);
/* What the host lacks for instances whose pages can be read; "" when nothing. */
const char *instance_lacks(void);

/*
 * Makes the process's instance of this word ("" or, say, "-events"), with this many KiB for each CPU and nothing enabled or
 * recorded. Times are of TRACE_CLOCK, so that records of several CPUs can be put in order.
 */
int instance_open(struct instance *instance, const char *word, unsigned buffer_kb);
/* Removes it; without one does nothing. An error when somebody else holds it: then at least nothing is recorded. */
int instance_close(struct instance *instance);
/* Removes what processes have left that are no more. */
void instance_sweep(void);

/* Writes a file below a folder of tracefs: 0 or a negative errno. */
int tracefs_write(const char *folder, const char *name, const char *text);
/* The whole of a file as text; false when it cannot be read or does not fit. */
bool tracefs_read(const char *folder, const char *name, char *text, size_t room);
/* Records that the kernel has counted as lost since the beginning. */
struct lost {
	/* Overwritten before they were read: the next page of their CPU says how many. */
	u64 overrun;
	/* Never recorded: no page says so. */
	u64 dropped;
};
/* `cpu` as the folder is called: "cpu0". Adds to what is there. */
void instance_lost(const struct instance *instance, const char *cpu, struct lost *lost);

#endif
