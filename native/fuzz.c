/* SPDX-License-Identifier: MIT */
/*
 * Feeds packet.c random and damaged streams, in this process, where sanitizers see what it does.
 *
 *	packet-fuzz SEED ITERATIONS
 *
 * What holds: a frame gives back its content, whatever bytes that has; a packet is ready only when the bytes since its
 * '$' add up to its checksum; content never outgrows its room; after whatever came before, a whole frame is understood.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "packet.h"

static uint64_t state;
static unsigned long long seed, iteration;
static unsigned long long ready, damaged;

static void broken(const char *what)
{
	fprintf(stderr, "packet-fuzz: seed %llu, iteration %llu: %s\n", seed, iteration, what);
	exit(1);
}

static void check(int holds, const char *what)
{
	if (!holds)
		broken(what);
}

/* xorshift64*: the same on every machine. */
static uint64_t draw(void)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 0x2545f4914f6cdd1dULL;
}

static size_t below(size_t limit)
{
	return (size_t)(draw() >> 16) % limit;
}

/* Bytes that mean something in a frame are half of all. */
static char any_byte(void)
{
	static const char special[] = "$#}*%+-\x03" "09afAF\x00\xff";
	return below(2) ? special[below(sizeof(special) - 1)] : (char)draw();
}

static size_t any_length(void)
{
	if (!below(2000))
		return PACKET_MAX - 2 + below(6);
	return below(8) ? below(40) : below(3000);
}

static void *room(size_t size)
{
	/* Of exactly this size, so that the first byte beyond it is noticed. */
	void *bytes = malloc(size ? size : 1);
	if (!bytes)
		broken("no memory");
	return bytes;
}

static size_t make_frame(char start, const char *content, size_t length, char **frame)
{
	*frame = room(packet_room(length));
	size_t size = packet_frame(start, content, length, *frame);
	check(size <= packet_room(length), "a frame is larger than packet_room says");
	check((*frame)[0] == start && (*frame)[size - 3] == '#', "a frame has no beginning or no end");
	for (size_t i = 1; i < size - 3; i++)
		check(!strchr("$#*", (*frame)[i]) || !(*frame)[i], "a frame holds a byte that should be escaped");
	return size;
}

/* Feeds one frame to a parser that may be in the middle of anything, and expects its content. */
static void expect_content(struct packet_parser *parser, const char *frame, size_t size, const char *content,
			   size_t length)
{
	for (size_t i = 0; i < size; i++) {
		enum packet_event event = packet_feed(parser, (unsigned char)frame[i]);
		if (i < size - 1)
			check(event == PACKET_NONE, "an event comes before the end of a frame");
		else if (length <= PACKET_MAX)
			check(event == PACKET_READY, "a whole frame is not understood");
		else
			check(event == PACKET_BAD, "a packet that is too long is taken");
	}
	if (length > PACKET_MAX)
		return;
	check(parser->length == length && !memcmp(parser->content, content, length), "content changes on its way");
	check(!parser->content[length], "content has no 0 behind it");
}

static void round_trip(struct packet_parser *parser)
{
	size_t length = any_length();
	char *content = room(length), *frame;
	for (size_t i = 0; i < length; i++)
		content[i] = any_byte();
	size_t size = make_frame('$', content, length, &frame);
	expect_content(parser, frame, size, content, length);
	free(frame);
	make_frame('%', content, length, &frame);
	free(frame);
	free(content);
}

/* What the parser should have summed up, worked out apart from it. */
struct witness {
	unsigned char sum;
	int digits;
	unsigned char said;
};

static int hex(unsigned char byte)
{
	const char *digits = "0123456789abcdef0123456789ABCDEF", *at = byte ? strchr(digits, byte) : NULL;
	return at ? (int)(at - digits) % 16 : -1;
}

static void feed_damaged(struct packet_parser *parser, struct witness *witness, unsigned char byte)
{
	int before = (int)parser->state;
	enum packet_event event = packet_feed(parser, byte);
	check(parser->length <= PACKET_MAX, "content outgrows its room");
	check((int)parser->state >= OUTSIDE && (int)parser->state <= CHECKSUM_2, "the parser is in no state");
	if (before == OUTSIDE || (before == INSIDE && byte == '$'))
		*witness = (struct witness){ 0 };
	else if (before == CHECKSUM_1 || before == CHECKSUM_2)
		witness->said = (unsigned char)(witness->said << 4 | (hex(byte) & 15));
	else if (before == ESCAPED || byte != '#')
		witness->sum = (unsigned char)(witness->sum + byte);
	if (before == CHECKSUM_2 && hex(byte) >= 0 && witness->sum == witness->said && !parser->too_long)
		check(event == PACKET_READY, "a right checksum is called wrong");
	if (event == PACKET_READY) {
		check(before == CHECKSUM_2 && hex(byte) >= 0 && witness->sum == witness->said, "a wrong checksum is taken");
		check(!parser->content[parser->length], "content has no 0 behind it");
		ready++;
	}
	damaged += event == PACKET_BAD;
}

/* Frames with bytes flipped, left out, doubled, put in between, or cut off. */
static void damaged_stream(struct packet_parser *parser)
{
	static struct witness witness;
	for (size_t frames = 1 + below(4); frames; frames--) {
		size_t length = any_length();
		char *content = room(length), *frame;
		for (size_t i = 0; i < length; i++)
			content[i] = any_byte();
		size_t size = make_frame('$', content, length, &frame);
		size_t often = below(2) ? 1 + size : 1 + below(60);
		for (size_t i = 0; i < size; i++) {
			unsigned char byte = (unsigned char)frame[i];
			size_t what = below(often) ? 5 : below(5);
			if (what == 0)
				continue;
			if (what == 1)
				byte ^= (unsigned char)(1 << below(8));
			if (what == 2)
				feed_damaged(parser, &witness, byte);
			if (what == 3)
				feed_damaged(parser, &witness, (unsigned char)any_byte());
			if (what == 4 && below(4) == 0)
				break;
			feed_damaged(parser, &witness, byte);
		}
		free(frame);
		free(content);
	}
	/* Ends whatever was begun. */
	for (const char *at = "#zz"; *at; at++)
		feed_damaged(parser, &witness, (unsigned char)*at);
}

int main(int count, char **arguments)
{
	if (count != 3) {
		fprintf(stderr, "usage: packet-fuzz SEED ITERATIONS\n");
		return 2;
	}
	seed = strtoull(arguments[1], NULL, 0);
	unsigned long long iterations = strtoull(arguments[2], NULL, 0);
	state = seed * 0x9e3779b97f4a7c15ULL + 1;
	/* On the heap: nothing that is ours lies behind it. */
	struct packet_parser *parser = calloc(1, sizeof(*parser));
	if (!parser)
		broken("no memory");
	for (iteration = 0; iteration < iterations; iteration++) {
		damaged_stream(parser);
		round_trip(parser);
	}
	free(parser);
	printf("%llu iterations: of the damaged frames %llu were whole, %llu refused\n", iterations, ready, damaged);
	return 0;
}
