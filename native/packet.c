/* SPDX-License-Identifier: MIT */
#include "packet.h"

static int hex_digit(unsigned char byte)
{
	if (byte >= '0' && byte <= '9')
		return byte - '0';
	byte |= 0x20;
	return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

static void put(struct packet_parser *parser, unsigned char byte)
{
	if (parser->length < PACKET_MAX)
		parser->content[parser->length++] = (char)byte;
	else
		parser->too_long = true;
}

static void begin(struct packet_parser *parser)
{
	parser->state = INSIDE;
	parser->sum = 0;
	parser->length = 0;
	parser->too_long = false;
}

enum packet_event packet_feed(struct packet_parser *parser, unsigned char byte)
{
	switch (parser->state) {
	case OUTSIDE:
		switch (byte) {
		case '$':
			begin(parser);
			return PACKET_NONE;
		case '+':
			return PACKET_ACK;
		case '-':
			return PACKET_NAK;
		case 3:
			return PACKET_INTERRUPT;
		default:
			return PACKET_NONE;
		}
	case INSIDE:
		if (byte == '#') {
			parser->state = CHECKSUM_1;
			return PACKET_NONE;
		}
		/* A packet that was cut off is followed by a whole one. */
		if (byte == '$') {
			begin(parser);
			return PACKET_NONE;
		}
		parser->sum = (unsigned char)(parser->sum + byte);
		if (byte == '}')
			parser->state = ESCAPED;
		else
			put(parser, byte);
		return PACKET_NONE;
	case ESCAPED:
		parser->sum = (unsigned char)(parser->sum + byte);
		put(parser, byte ^ 0x20);
		parser->state = INSIDE;
		return PACKET_NONE;
	case CHECKSUM_1:
	case CHECKSUM_2: {
		int digit = hex_digit(byte);
		if (digit < 0) {
			parser->state = OUTSIDE;
			return PACKET_BAD;
		}
		if (parser->state == CHECKSUM_1) {
			parser->wanted = (unsigned char)(digit << 4);
			parser->state = CHECKSUM_2;
			return PACKET_NONE;
		}
		parser->state = OUTSIDE;
		parser->content[parser->length] = 0;
		return parser->sum == (parser->wanted | digit) && !parser->too_long ? PACKET_READY : PACKET_BAD;
	}
	}
	return PACKET_NONE;
}

size_t packet_room(size_t length)
{
	return 2 * length + 4;
}

size_t packet_frame(char start, const char *content, size_t length, char *out)
{
	static const char digits[] = "0123456789abcdef";
	size_t at = 0;
	unsigned char sum = 0;
	out[at++] = start;
	for (size_t i = 0; i < length; i++) {
		unsigned char byte = (unsigned char)content[i];
		/* `*` would start a run-length sequence. */
		if (byte == '#' || byte == '$' || byte == '}' || byte == '*') {
			out[at++] = '}';
			sum = (unsigned char)(sum + '}');
			byte ^= 0x20;
		}
		out[at++] = (char)byte;
		sum = (unsigned char)(sum + byte);
	}
	out[at++] = '#';
	out[at++] = digits[sum >> 4];
	out[at++] = digits[sum & 15];
	return at;
}
