/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "helper.h"

static bool text_reserve(struct text *text, size_t more)
{
	if (text->failed)
		return false;
	if (text->length + more + 1 <= text->room)
		return true;
	size_t room = text->room ? text->room : 256;
	while (room < text->length + more + 1)
		room *= 2;
	char *at = realloc(text->at, room);
	if (!at) {
		text->failed = true;
		return false;
	}
	text->at = at;
	text->room = room;
	return true;
}

void text_add(struct text *text, const char *format, ...)
{
	va_list arguments, again;
	va_start(arguments, format);
	va_copy(again, arguments);
	int length = vsnprintf(NULL, 0, format, arguments);
	if (length >= 0 && text_reserve(text, (size_t)length)) {
		vsnprintf(text->at + text->length, (size_t)length + 1, format, again);
		text->length += (size_t)length;
	}
	va_end(again);
	va_end(arguments);
}

void text_bytes(struct text *text, const void *bytes, size_t length)
{
	if (!text_reserve(text, length))
		return;
	if (length)
		memcpy(text->at + text->length, bytes, length);
	text->length += length;
	text->at[text->length] = 0;
}

void text_hex(struct text *text, const void *bytes, size_t length)
{
	static const char digits[] = "0123456789abcdef";
	if (!text_reserve(text, 2 * length))
		return;
	for (size_t i = 0; i < length; i++) {
		u8 byte = ((const u8 *)bytes)[i];
		text->at[text->length++] = digits[byte >> 4];
		text->at[text->length++] = digits[byte & 15];
	}
	text->at[text->length] = 0;
}

void text_json(struct text *text, const char *words)
{
	text_add(text, "\"");
	for (; *words; words++) {
		if (*words == '"' || *words == '\\')
			text_add(text, "\\%c", *words);
		else if ((u8)*words < 0x20)
			text_add(text, "\\u%04x", (u8)*words);
		else
			text_bytes(text, words, 1);
	}
	text_add(text, "\"");
}

void text_free(struct text *text)
{
	free(text->at);
	*text = (struct text){ 0 };
}
