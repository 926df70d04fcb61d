/*
 * What the engine's speed is measured against: the same work on the same tables, as directly as C can do it.
 *
 *   reference walk N         visits N leaves in address order, adding up their frames
 *   reference translate N M  M two-dimensional translations of random pages among N, EPT over x86-64
 *   reference populate N     N faults in address order: find or build the tables, store the leaf
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

int main(int argc, char **argv)
{
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
