/* SPDX-License-Identifier: MIT */
/*
 * Gives records.c formats and pages whose content is known, then hostile and random ones, in this process, where
 * sanitizers see what it does.
 *
 *	records-check SEED ITERATIONS
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "records.h"

static uint64_t state;

static void check(int holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "records-check: %s\n", what);
	exit(1);
}

/* xorshift64*: the same on every machine. */
static uint64_t draw(void)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 0x2545f4914f6cdd1dULL;
}

/* ---- formats */

#define HEAD "name: e\nID: 118\nformat:\n\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"
static const char *const names[] = { "common_pid", "gfn", "level", "absent" };
#define PID "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n"
#define GFN "\tfield:u64 gfn;\toffset:8;\tsize:8;\tsigned:0;\n"
#define LEVEL "\tfield:u8 level;\toffset:24;\tsize:1;\tsigned:0;\n"

static void check_formats(void)
{
	static const char *const hostile[] = {
		"",
		"ID",
		"ID: ",
		"ID: 0\n" GFN,
		"ID: -1\n" GFN,
		"ID: 65536\n" GFN,
		"ID: 18446744073709551617\n" GFN,
		"ID: 12x\n" GFN,
		"ID: 12\nID: 13\n" GFN,
		GFN,
		HEAD "\tfield:u64 gfn;\toffset:-8;\tsize:8;\tsigned:0;\n",
		HEAD "\tfield:u64 gfn;\toffset:4097;\tsize:8;\tsigned:0;\n",
		HEAD "\tfield:u64 gfn;\toffset:99999999999999999999;\tsize:8;\tsigned:0;\n",
		HEAD "\tfield:u64 gfn;\toffset:8;\tsize:3;\tsigned:0;\n",
		HEAD "\tfield:u64 gfn;\toffset:8;\tsize:0;\tsigned:0;\n",
		HEAD "\tfield:u64 gfn;\toffset:8;\tsize:16;\tsigned:0;\n",
		HEAD "\tfield:u64 gfn;\toffset:8;\tsize:8\n",
		HEAD "\tfield:u64 gfn;\toffset:8",
		HEAD "\tfield:u64 gfn;\n\toffset:8;\tsize:8;\tsigned:0;\n",
		HEAD GFN GFN,
	};
	struct record_format format;
	check(format_parse(HEAD PID GFN LEVEL, names, 4, &format), "a format is refused");
	check(format.id == 118 && format.fields[0].offset == 4 && format.fields[1].size == 8 && format.fields[2].offset == 24 &&
		      !format.fields[3].size && format.fields[0].is_signed && !format.fields[1].is_signed,
	      "a format is misread");
	/* Names that only end alike, or begin alike. */
	check(format_parse(HEAD "\tfield:u64 old_gfn;\toffset:8;\tsize:8;\tsigned:0;\n\tfield:u64 gfns;\toffset:8;\tsize:8;\tsigned:0;\n",
			   names, 4, &format) &&
		      !format.fields[1].size,
	      "another field is taken for one that is wanted");
	for (size_t i = 0; i < sizeof(hostile) / sizeof(hostile[0]); i++) {
		if (!format_parse(hostile[i], names, 4, &format))
			continue;
		fprintf(stderr, "records-check: this format is taken: %s\n", hostile[i]);
		exit(1);
	}
	uint8_t record[25] = { 118, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 7, 0x88, [24] = 0xff };
	uint64_t value;
	uint16_t id;
	check(format_parse(HEAD PID GFN LEVEL, names, 4, &format), "a format is refused");
	check(format_fits(&format, 25) && !format_fits(&format, 24), "a record's length is misjudged");
	check(record_id(record, 2, &id) && id == 118 && !record_id(record, 1, &id), "a record's id is misread");
	check(format_value(&format, record, 0, &value) && value == (uint64_t)-2, "a sign is not extended");
	check(format_value(&format, record, 1, &value) && value == 0x8807060504030201, "eight bytes are misread");
	check(format_value(&format, record, 2, &value) && value == 0xff, "a byte is misread");
	check(!format_value(&format, record, 3, &value), "a field is told that the event lacks");
}

/* ---- pages */

/* What a page's records were: their first bytes, lengths and times in a text. */
struct seen {
	const uint8_t *page;
	size_t length;
	char text[4096];
	size_t at;
};

static void take(void *context, uint64_t time, const uint8_t *record, size_t length)
{
	struct seen *seen = context;
	check(record >= seen->page + 16 && length <= seen->length && record + length <= seen->page + seen->length,
	      "a record lies outside of its page");
	uint8_t first = length ? record[0] : 0;
	if (seen->at < sizeof(seen->text) - 64)
		seen->at += (size_t)sprintf(seen->text + seen->at, "%llu:%zu:%02x ", (unsigned long long)time, length, first);
}

/* The words behind a page's header, in a page that ends with them. */
static void expect(const uint32_t *words, size_t count, uint64_t used, int whole, const char *records, const char *what)
{
	size_t length = 16 + 4 * count;
	uint8_t *page = malloc(length);
	uint64_t time = 1000;
	static struct seen seen;
	check(page != NULL, "no memory");
	memcpy(page, &time, 8);
	memcpy(page + 8, &used, 8);
	if (count)
		memcpy(page + 16, words, 4 * count);
	seen = (struct seen){ .page = page, .length = length };
	int good = page_records(page, length, take, &seen);
	if (good != whole || strcmp(seen.text, records)) {
		fprintf(stderr, "records-check: %s: %s, records %s\n", what, good ? "whole" : "broken", seen.text);
		exit(1);
	}
	free(page);
}

#define WORD(type, delta) ((uint32_t)(type) | (uint32_t)(delta) << 5)
#define EXPECT(used, whole, records, what, ...)                                                         \
	do {                                                                                            \
		const uint32_t words[] = { __VA_ARGS__ };                                               \
		expect(words, sizeof(words) / 4, (used) ? (used) : sizeof(words), whole, records, what); \
	} while (0)

static void check_pages(void)
{
	EXPECT(0, 1, "1005:8:aa 1012:4:bb ", "two events", WORD(2, 5), 0xaa, 0, WORD(1, 7), 0xbb);
	/* The flags of lost events are no length. */
	EXPECT(8ULL | 3ULL << 30, 1, "1005:4:aa ", "an event behind which some were lost", WORD(1, 5), 0xaa, 99, 0);
	EXPECT(0, 1, "1001:8:aa 1002:4:bb ", "a long event", WORD(0, 1), 12, 0xaa, 0, WORD(1, 1), 0xbb);
	EXPECT(0, 1, "1001:0:00 1002:4:bb ", "an empty event", WORD(0, 1), 4, WORD(1, 1), 0xbb);
	EXPECT(0, 1, "268436459:4:aa ", "a long time", WORD(30, 3), 2, WORD(1, 0), 0xaa);
	EXPECT(0, 1, "1073741832:4:aa ", "an absolute time", WORD(31, 8), 8, WORD(1, 0), 0xaa);
	EXPECT(0, 1, "1003:4:aa ", "an event that was taken back", WORD(29, 2), 8, 0xcc, WORD(1, 1), 0xaa);
	EXPECT(0, 1, "1001:4:aa ", "the end of a page", WORD(1, 1), 0xaa, WORD(29, 0), 0xffffffff, WORD(1, 1), 0xbb);
	EXPECT(4096, 0, "", "more in use than there is", WORD(1, 1), 0xaa);
	EXPECT((1U << 27) - 1, 0, "", "far more in use than there is", WORD(1, 1), 0xaa);
	EXPECT(0, 0, "1001:4:aa ", "an event that ends behind the page", WORD(1, 1), 0xaa, WORD(2, 1), 0);
	EXPECT(6, 0, "", "an event that ends behind what is in use", WORD(1, 1), 0xaa);
	EXPECT(2, 0, "", "a header that is cut", WORD(1, 1));
	EXPECT(4, 0, "", "a long event without its length", WORD(0, 1), 12, 0xaa, 0);
	EXPECT(0, 0, "", "a long event that is shorter than its length", WORD(0, 1), 0, 0xaa, 0);
	EXPECT(0, 0, "", "a long event of no whole words", WORD(0, 1), 9, 0xaa, 0);
	EXPECT(0, 0, "", "a long event of 4 GiB", WORD(0, 1), 0xfffffffc, 0xaa, 0);
	EXPECT(0, 0, "", "a long event that wraps", WORD(0, 1), 0xffffffff, 0xaa, 0);
	EXPECT(0, 0, "", "an event taken back that has no length", WORD(29, 1), 0, 0xaa, 0);
	EXPECT(4, 0, "", "half a time", WORD(30, 1), 0);
	expect(NULL, 0, 0, 1, "", "an empty page");
	for (size_t length = 0; length < 16; length++) {
		uint8_t *page = calloc(1, length ? length : 1);
		struct seen seen = { .page = page, .length = length };
		check(page && !page_records(page, length, take, &seen), "half a header is taken for a page");
		free(page);
	}
}

/* Pages that make sense for the most part, with what does not. */
static void random_page(void)
{
	static struct seen seen;
	size_t length = 16 + 4 * (draw() % 256);
	uint8_t *page = malloc(length);
	check(page != NULL, "no memory");
	uint64_t used = draw() % 8 ? length - 16 : draw() % 2 ? draw() % 2048 : draw();
	memset(page, 0, length);
	memcpy(page + 8, &used, 8);
	for (size_t at = 16; at + 4 <= length; at += 4) {
		uint32_t word = draw() % 4 ? WORD(draw() % 5, draw() % 3) : (uint32_t)draw();
		if (draw() % 16 == 0)
			word = WORD(29 + draw() % 3, draw() % 2);
		memcpy(page + at, &word, 4);
	}
	seen = (struct seen){ .page = page, .length = length };
	page_records(page, length, take, &seen);
	free(page);
}

int main(int count, char **arguments)
{
	if (count != 3) {
		fprintf(stderr, "usage: records-check SEED ITERATIONS\n");
		return 2;
	}
	state = strtoull(arguments[1], NULL, 0) * 0x9e3779b97f4a7c15ULL + 1;
	check_formats();
	check_pages();
	unsigned long long iterations = strtoull(arguments[2], NULL, 0);
	for (unsigned long long i = 0; i < iterations; i++)
		random_page();
	printf("formats and pages are read as they are; %llu random pages\n", iterations);
	return 0;
}
