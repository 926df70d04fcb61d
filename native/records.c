/* SPDX-License-Identifier: MIT */
/* Pages and records of trace_pipe_raw (Documentation/trace/ring-buffer-design.rst; events/header_page and header_event). */
#include <stdlib.h>
#include <string.h>

#include "records.h"

/* A page begins with a time, and the number of bytes in use behind the header, whose upper bits are flags. */
#define PAGE_HEADER 16
#define COMMIT_BYTES ((1U << 27) - 1)
/* The 32-bit word before each event: its kind or length in words, and the time since the one before. */
#define TYPE_BITS 5
#define DELTA_BITS 27
enum { TYPE_LONG = 0, TYPE_PADDING = 29, TYPE_TIME_EXTEND = 30, TYPE_TIME_STAMP = 31 };
/* An absolute time has this many bits; those above are the page's. */
#define STAMP_BITS (32 + DELTA_BITS)
/* A record's largest size: no event of the kernel is longer than a page. */
#define RECORD_MAX 4096

static uint32_t word_at(const uint8_t *bytes)
{
	uint32_t word;
	memcpy(&word, bytes, sizeof(word));
	return word;
}

static uint64_t long_at(const uint8_t *bytes)
{
	uint64_t value;
	memcpy(&value, bytes, sizeof(value));
	return value;
}

/* ---- formats */

/* `offset:16;`: a decimal number behind a label, ended by `;`. */
static bool labelled(const char *line, const char *end, const char *label, unsigned long most, unsigned long *value)
{
	size_t length = strlen(label);
	for (const char *at = line; at + length < end; at++) {
		if (strncmp(at, label, length))
			continue;
		at += length;
		*value = 0;
		if (*at < '0' || *at > '9')
			return false;
		for (; at < end && *at >= '0' && *at <= '9'; at++) {
			*value = 10 * *value + (unsigned long)(*at - '0');
			if (*value > most)
				return false;
		}
		return at < end && *at == ';';
	}
	return false;
}

static bool is_name(char c)
{
	return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Whether a line is `field:TYPE NAME;…`. */
static bool names_field(const char *line, const char *end, const char *name)
{
	static const char start[] = "\tfield:";
	if (end - line < (long)sizeof(start) || strncmp(line, start, sizeof(start) - 1))
		return false;
	const char *semicolon = memchr(line, ';', (size_t)(end - line));
	size_t length = strlen(name);
	if (!semicolon || semicolon - line <= (long)(length + sizeof(start)))
		return false;
	const char *found = semicolon - length;
	return !strncmp(found, name, length) && !is_name(found[-1]);
}

bool format_parse(const char *text, const char *const names[], int count, struct record_format *format)
{
	unsigned long id = 0;
	*format = (struct record_format){ 0 };
	for (const char *line = text, *end; *line; line = *end ? end + 1 : end) {
		end = strchr(line, '\n');
		if (!end)
			end = line + strlen(line);
		if (!strncmp(line, "ID: ", 4)) {
			char *after;
			if (id || line[4] < '0' || line[4] > '9')
				return false;
			id = strtoul(line + 4, &after, 10);
			if (after != end || !id || id > UINT16_MAX)
				return false;
		}
		for (int i = 0; i < count; i++) {
			unsigned long offset, size, is_signed;
			if (!names_field(line, end, names[i]))
				continue;
			if (format->fields[i].size || !labelled(line, end, "offset:", RECORD_MAX, &offset) ||
			    !labelled(line, end, "size:", 8, &size) || !labelled(line, end, "signed:", 1, &is_signed))
				return false;
			if (size != 1 && size != 2 && size != 4 && size != 8)
				return false;
			format->fields[i].offset = offset;
			format->fields[i].size = size;
			format->fields[i].is_signed = is_signed;
		}
	}
	format->id = (uint16_t)id;
	return id;
}

bool format_value(const struct record_format *format, const uint8_t *record, int field, uint64_t *value)
{
	size_t size = format->fields[field].size;
	if (!size)
		return false;
	*value = 0;
	memcpy(value, record + format->fields[field].offset, size);
	int unused = 64 - 8 * (int)size;
	if (format->fields[field].is_signed)
		*value = (uint64_t)((int64_t)(*value << unused) >> unused);
	return true;
}

bool format_fits(const struct record_format *format, size_t length)
{
	for (int i = 0; i < RECORD_FIELDS; i++) {
		if (format->fields[i].size && format->fields[i].offset + format->fields[i].size > length)
			return false;
	}
	return true;
}

bool record_id(const uint8_t *record, size_t length, uint16_t *id)
{
	if (length < sizeof(*id))
		return false;
	memcpy(id, record, sizeof(*id));
	return true;
}

/* ---- pages */

bool page_records(const uint8_t *page, size_t length, record_taker *take, void *context)
{
	if (length < PAGE_HEADER)
		return false;
	uint64_t time = long_at(page);
	size_t used = long_at(page + 8) & COMMIT_BYTES;
	if (used > length - PAGE_HEADER)
		return false;
	const uint8_t *at = page + PAGE_HEADER, *end = at + used;
	while (at < end) {
		size_t left = (size_t)(end - at);
		if (left < 4)
			return false;
		uint32_t header = word_at(at), type = header & ((1U << TYPE_BITS) - 1), delta = header >> TYPE_BITS;
		/* Nothing follows on this page. */
		if (type == TYPE_PADDING && !delta)
			return true;
		/* Events of up to 28 words have their length in the header; in all others the next word says something. */
		if (type && type < TYPE_PADDING) {
			if (4 * type > left - 4)
				return false;
			time += delta;
			take(context, time, at + 4, 4 * type);
			at += 4 + 4 * type;
			continue;
		}
		if (left < 8)
			return false;
		uint32_t next = word_at(at + 4);
		switch (type) {
		case TYPE_TIME_EXTEND:
			time += (uint64_t)next << DELTA_BITS | delta;
			at += 8;
			break;
		case TYPE_TIME_STAMP:
			time = (time & ~((1ULL << STAMP_BITS) - 1)) | (uint64_t)next << DELTA_BITS | delta;
			at += 8;
			break;
		default:
			/* A long event, or one that was taken back: its length counts the word that says it. Events are whole words. */
			if (next < 4 || next % 4 || next > left - 4)
				return false;
			time += delta;
			if (type == TYPE_LONG)
				take(context, time, at + 8, next - 4);
			at += 4 + (size_t)next;
		}
	}
	return true;
}
