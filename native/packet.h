/* SPDX-License-Identifier: MIT */
/* Framing of the GDB remote serial protocol. Knows no machine, so that it can be fuzzed alone. */
#ifndef PACKET_H
#define PACKET_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of a packet's content, at most; told to the client as PacketSize. */
#define PACKET_MAX 0x20000

enum packet_event {
	/* More bytes are needed. */
	PACKET_NONE,
	/* `content` holds `length` bytes and a 0 behind them. */
	PACKET_READY,
	/* The checksum is wrong, or the packet is too long: to be answered with `-`. */
	PACKET_BAD,
	PACKET_ACK,
	PACKET_NAK,
	/* The byte 0x03 outside of a packet. */
	PACKET_INTERRUPT,
};

struct packet_parser {
	enum { OUTSIDE, INSIDE, ESCAPED, CHECKSUM_1, CHECKSUM_2 } state;
	unsigned char sum;
	unsigned char wanted;
	bool too_long;
	size_t length;
	char content[PACKET_MAX + 1];
};

/* Takes one byte. */
enum packet_event packet_feed(struct packet_parser *parser, unsigned char byte);
/* Writes a framed packet (`start` is '$' or '%') into `out`, which has room for packet_room(length) bytes. */
size_t packet_frame(char start, const char *content, size_t length, char *out);
size_t packet_room(size_t length);

#endif
