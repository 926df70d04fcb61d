/* SPDX-License-Identifier: MIT */
/*
 * What the kernel's trace buffers hold, in binary: records, as an event's `format` file describes them, in the pages that
 * trace_pipe_raw gives. Text is for people, and differs from kernel to kernel. Knows no machine, so that it can be checked
 * alone.
 */
#ifndef RECORDS_H
#define RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Fields of one event that can be asked for. */
#define RECORD_FIELDS 12

/* Where a record has the fields that are asked for. */
struct record_format {
	uint16_t id;
	/* In the order of the names that were asked for. Size 0: this kernel's event does not tell it. */
	struct {
		size_t offset;
		size_t size;
		/* It has a sign to be extended. */
		bool is_signed;
	} fields[RECORD_FIELDS];
};

/* Reads a `format` file, for at most RECORD_FIELDS names. False when it has no id, or says of a wanted field what no record could hold. */
bool format_parse(const char *text, const char *const names[], int count, struct record_format *format);

/* The value of a field; false when the event does not tell it. A record too short for its fields is format_fits' matter. */
bool format_value(const struct record_format *format, const uint8_t *record, int field, uint64_t *value);
/* Whether a record of this length has all fields of the format. */
bool format_fits(const struct record_format *format, size_t length);
/* The id of the event that a record is of; false when the record is too short to say. */
bool record_id(const uint8_t *record, size_t length, uint16_t *id);

/* Takes a record of a page. `time` is the trace clock's. */
typedef void record_taker(void *context, uint64_t time, const uint8_t *record, size_t length);

/*
 * Goes through the records of one page of trace_pipe_raw, of `length` bytes. False when the page contradicts itself; the
 * records before that place have been taken, the rest cannot be found.
 */
bool page_records(const uint8_t *page, size_t length, record_taker *take, void *context);

#endif
