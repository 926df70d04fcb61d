/* SPDX-License-Identifier: MIT */
/* KVM's tracepoints, recorded in an instance of this process and taken as pages of the kernel's ring buffer. */
#ifndef EVENTS_H
#define EVENTS_H

#include <stdbool.h>
#include <stddef.h>

#include "helper.h"

/* What the host lacks, or "". */
const char *events_lacks(void);
/* Begins to record, or, when that has begun, changes what is recorded; `all` adds the events of walks and exits. */
int events_on(bool all);
/* Ends it: what nobody has taken is gone, and nothing is left in tracefs. */
int events_off(void);
/* Nothing more is recorded, and what was can still be taken. */
void events_pause(void);
/* Formats of all events that can be recorded, and what else a reader of pages needs, as PROTOCOL.md has it. */
int events_formats(struct text *json);
/* `b` and records of pages, as PROTOCOL.md has them. */
int events_take(struct text *bytes);
/* What the kernel has counted as lost since the beginning, as PROTOCOL.md has it. */
int events_lost(struct text *json);

/* Takes a page; an error (below 0) ends the taking. */
typedef int page_taker(void *context, int cpu, const u8 *page, size_t length);
/*
 * Gives what has been recorded until now, `most` bytes and a page at most: 1 when that was reached, and more may be there;
 * else 0, or the taker's error. With `least`, of each CPU only as many pages as it has filled, of so many bytes.
 */
int events_pages(size_t most, size_t least, page_taker *take, void *context);

/* What stands before a page in a stream of them: CPU (2 bytes, little-endian), the page's length (4). */
#define PAGE_RECORD_HEADER 6
void page_record_header(u8 header[PAGE_RECORD_HEADER], int cpu, size_t length);

#endif
