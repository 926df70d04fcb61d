/*
 * What the engine's speed is measured against: the same work on the same tables, as directly as C can do it.
 *
 *   reference walk N         visits N leaves in address order, adding up their frames
 *   reference translate N M  M two-dimensional translations of random pages among N, EPT over x86-64
 *   reference populate N     N faults in address order: find or build the tables, store the leaf
 *   reference FORMAT N       visits N leaves of such tables (see shapes), adding up their frames
 *
 * Prints the checksum and nanoseconds per unit of work; the best of several rounds.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef uint64_t u64;
#define ADDRESS 0x000ffffffffff000ull

static u64 *frames; /* frame 0 is never a table */
static size_t used, capacity;

static u64 now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000000000ull + t.tv_nsec;
}

static u64 new_table(void)
{
	if (used == capacity) {
		fprintf(stderr, "out of tables\n");
		exit(1);
	}
	return (u64)used++ << 12;
}

static inline u64 *table(u64 address)
{
	return frames + (address >> 3);
}

static void reset(size_t tables)
{
	free(frames);
	capacity = tables + 16;
	frames = aligned_alloc(4096, capacity * 4096);
	memset(frames, 0, capacity * 4096);
	used = 1;
}

static inline void map(u64 root, u64 frame, u64 leaf, u64 link)
{
	u64 at = root;
	for (int shift = 27; shift > 0; shift -= 9) {
		u64 *entry = table(at) + ((frame >> shift) & 511);
		if (!(*entry & 7))
			*entry = new_table() | link;
		at = *entry & ADDRESS;
	}
	table(at)[frame & 511] = leaf;
}

static u64 walk(u64 at, int level, u64 *count)
{
	u64 sum = 0;
	const u64 *entries = table(at);
	for (int i = 0; i < 512; i++) {
		u64 entry = entries[i];
		if (!(entry & 1))
			continue;
		if (level == 1 || (entry & 0x80)) {
			sum += (entry & ADDRESS) >> 12;
			(*count)++;
		} else {
			sum += walk(entry & ADDRESS, level - 1, count);
		}
	}
	return sum;
}

static inline u64 second(u64 root, u64 frame)
{
	u64 at = root;
	for (int shift = 27; shift > 0; shift -= 9) {
		u64 entry = table(at)[(frame >> shift) & 511];
		if (!(entry & 7))
			return 0;
		at = entry & ADDRESS;
	}
	return table(at)[frame & 511] & ADDRESS;
}

static inline u64 translate(u64 ept, u64 cr3, u64 frame)
{
	u64 gpa = cr3;
	for (int shift = 27; shift >= 0; shift -= 9) {
		u64 entry = table(second(ept, gpa >> 12))[(frame >> shift) & 511];
		if (!(entry & 1))
			return 0;
		gpa = entry & ADDRESS;
	}
	return second(ept, gpa >> 12);
}

static u64 xorshift(u64 *state)
{
	u64 x = *state;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

static size_t tables_for(size_t pages)
{
	return pages / 512 + pages / 262144 + 16;
}

/* What tells formats apart when all that is wanted is their leaves. */
static const struct shape {
	const char *name;
	int page, bits, levels, bytes;
	u64 present, page_mark;
	int down; /* how many bits lower than in the address a frame stands */
} shapes[] = {
	{ "x86-32", 12, 10, 2, 4, 1, 1, 0 },      { "pae", 12, 9, 3, 8, 1, 1, 0 },
	{ "x86-64", 12, 9, 4, 8, 1, 1, 0 },       { "x86-64-5", 12, 9, 5, 8, 1, 1, 0 },
	{ "ept", 12, 9, 4, 8, 7, 7, 0 },          { "arm64-s1-4k", 12, 9, 4, 8, 1, 3, 0 },
	{ "arm64-s2-16k", 14, 11, 4, 8, 1, 3, 0 }, { "arm64-s1-64k", 16, 13, 3, 8, 1, 3, 0 },
	{ "sv48", 12, 9, 4, 8, 1, 0xf, 2 },
};

static unsigned char *pool;
static size_t pool_used;

static void *at(u64 address)
{
	return pool + address;
}

static u64 shape_walk(const struct shape *s, u64 table, int level)
{
	u64 sum = 0;
	size_t n = (size_t)1 << s->bits;
	u64 mask = (1ull << 52) - (1ull << s->page);
	if (s->bytes == 4) {
		const uint32_t *t = at(table);
		if (level == 1) {
			for (size_t i = 0; i < n; i++)
				sum += t[i] & 1 ? t[i] >> 12 : 0;
			return sum;
		}
		for (size_t i = 0; i < n; i++)
			if (t[i] & 1)
				sum += shape_walk(s, t[i] & 0xfffff000u, level - 1);
		return sum;
	}
	const u64 *t = at(table);
	if (level == 1) {
		u64 want = s->page_mark & 3 ? s->page_mark : 1;
		for (size_t i = 0; i < n; i++)
			sum += t[i] & want ? ((t[i] << s->down) & mask) >> 12 : 0;
		return sum;
	}
	for (size_t i = 0; i < n; i++)
		if (t[i] & s->present)
			sum += shape_walk(s, (t[i] << s->down) & mask, level - 1);
	return sum;
}

static u64 shape_table(const struct shape *s)
{
	u64 size = 1ull << s->page;
	u64 table = (pool_used + size - 1) / size * size;
	pool_used = table + size;
	return table;
}

static int shape_bench(const struct shape *s, size_t n)
{
	u64 size = 1ull << s->page;
	size_t capacity = (n / (1u << s->bits) + 64) * size * 2;
	pool = aligned_alloc(65536, (capacity + 65535) / 65536 * 65536);
	memset(pool, 0, capacity);
	pool_used = size;
	u64 root = shape_table(s);
	for (size_t i = 0; i < n; i++) {
		u64 table = root;
		for (int level = s->levels; level > 1; level--) {
			size_t index = (i >> (s->bits * (level - 1))) & ((1u << s->bits) - 1);
			u64 next;
			if (s->bytes == 4) {
				uint32_t *e = (uint32_t *)at(table) + index;
				if (!*e)
					*e = (uint32_t)shape_table(s) | 7;
				next = *e & 0xfffff000u;
			} else {
				u64 *e = (u64 *)at(table) + index;
				if (!*e)
					*e = (shape_table(s) >> s->down) | (s->down ? 1 : s->present | 2);
				next = (*e << s->down) & ((1ull << 52) - size);
			}
			table = next;
		}
		size_t index = i & ((1u << s->bits) - 1);
		u64 frame = (u64)i << s->page;
		if (s->bytes == 4)
			((uint32_t *)at(table))[index] = (uint32_t)frame | 7;
		else
			((u64 *)at(table))[index] = (frame >> s->down) | s->page_mark;
	}
	double best = 1e18;
	u64 sum = 0;
	for (int round = 0; round < 5; round++) {
		u64 begin = now();
		sum = shape_walk(s, root, s->levels);
		double each = (double)(now() - begin) / n;
		if (each < best)
			best = each;
	}
	printf("%llu %.3f\n", (unsigned long long)sum, best);
	return 0;
}

int main(int argc, char **argv)
{
	for (size_t i = 0; argc == 3 && i < sizeof(shapes) / sizeof(*shapes); i++)
		if (!strcmp(argv[1], shapes[i].name))
			return shape_bench(&shapes[i], strtoull(argv[2], NULL, 10));
	if (argc < 3)
		return 2;
	size_t n = strtoull(argv[2], NULL, 10);
	double best = 1e18;
	u64 sum = 0;
	if (!strcmp(argv[1], "walk")) {
		reset(tables_for(n));
		u64 root = new_table();
		for (size_t i = 0; i < n; i++)
			map(root, i, (u64)(i + 7) << 12 | 0x63, 0x67);
		for (int round = 0; round < 5; round++) {
			u64 count = 0, begin = now();
			sum = walk(root, 4, &count);
			double each = (double)(now() - begin) / count;
			if (each < best)
				best = each;
		}
	} else if (!strcmp(argv[1], "translate")) {
		size_t m = strtoull(argv[3], NULL, 10);
		/* Guest tables lie in guest frames from n up; data pages share one host frame, since only tables are read. */
		size_t guest = tables_for(n);
		reset(guest + tables_for(n + guest) + 16);
		u64 first = used;
		u64 cr3_host = new_table();
		u64 shift_frames = n - first;
		for (size_t i = 0; i < n; i++) {
			u64 at = cr3_host;
			for (int shift = 27; shift > 0; shift -= 9) {
				u64 *entry = table(at) + ((i >> shift) & 511);
				if (!*entry)
					*entry = (new_table() + (shift_frames << 12)) | 0x67;
				at = (*entry & ADDRESS) - (shift_frames << 12);
			}
			table(at)[i & 511] = (u64)i << 12 | 0x67;
		}
		size_t built = used - first;
		u64 ept = new_table();
		u64 data = new_table();
		for (size_t i = 0; i < n; i++)
			map(ept, i, data | 0x37, 7);
		for (size_t k = 0; k < built; k++)
			map(ept, n + k, (u64)(first + k) << 12 | 0x37, 7);
		u64 cr3 = cr3_host + (shift_frames << 12);
		for (int round = 0; round < 5; round++) {
			u64 state = 88172645463325252ull, begin = now();
			sum = 0;
			for (size_t i = 0; i < m; i++)
				sum += translate(ept, cr3, xorshift(&state) % n) >> 12;
			double each = (double)(now() - begin) / m;
			if (each < best)
				best = each;
		}
	} else if (!strcmp(argv[1], "populate")) {
		for (int round = 0; round < 3; round++) {
			reset(tables_for(n));
			u64 root = new_table(), begin = now();
			for (size_t i = 0; i < n; i++) {
				if (!second(root, i))
					map(root, i, (u64)(i + 7) << 12 | 0x37, 7);
			}
			double each = (double)(now() - begin) / n;
			if (each < best)
				best = each;
		}
		sum = used;
	} else {
		return 2;
	}
	printf("%llu %.3f\n", (unsigned long long)sum, best);
	return 0;
}
