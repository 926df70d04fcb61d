/*
 * What the way to KVM through the helper is measured against: the same, as directly as C can do it.
 *
 *   kvm-reference exits N FILE   the guest program in FILE, loaded at 1M, leaves by a port N times
 *   kvm-reference read N         N bytes of a memfd are copied from where it is mapped
 *
 * Prints a checksum and nanoseconds: per exit, or for all the bytes; the best of several rounds.
 * Compiled together with the helper's setup.c, so that the vCPU is set up as the helper's is.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../native/helper.h"

#define MEMORY (64UL << 20)
#define PROGRAM 0x100000
#define TABLES 0x200000
#define ROUNDS 5

static u64 now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000000000ull + (u64)t.tv_nsec;
}

static void must(int holds, const char *what)
{
	if (holds)
		return;
	perror(what);
	exit(1);
}

static void exits(u64 count, const char *path)
{
	int kvm = open("/dev/kvm", O_RDWR);
	must(kvm >= 0, "/dev/kvm");
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	must(vm >= 0, "KVM_CREATE_VM");
	ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000UL);
	unsigned char *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(memory != MAP_FAILED, "mmap");
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY, .userspace_addr = (u64)(uintptr_t)memory };
	must(!ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	int file = open(path, O_RDONLY);
	must(file >= 0 && read(file, memory + PROGRAM, 4096) > 0, path);
	/* The first 1G, mapped to itself by 2M pages. */
	u64 *tables = (u64 *)(memory + TABLES);
	tables[0] = (TABLES + 0x1000) | 3;
	tables[512] = (TABLES + 0x2000) | 3;
	for (u64 i = 0; i < 512; i++)
		tables[1024 + i] = i << 21 | 0x83;
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	must(vcpu >= 0, "KVM_CREATE_VCPU");
	must(!vcpu_set_cpuid(kvm, vcpu), "KVM_SET_CPUID2");
	must(!set_long_mode(vcpu, PROGRAM, MEMORY - 16, TABLES, 0, 0), "KVM_SET_SREGS");
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	must(run != MAP_FAILED, "kvm_run");
	u64 best = ~0ull, ports = 0;
	for (int round = 0; round < ROUNDS; round++) {
		u64 begin = now();
		for (u64 i = 0; i < count; i++) {
			must(!ioctl(vcpu, KVM_RUN, 0) && run->exit_reason == KVM_EXIT_IO, "KVM_RUN");
			ports += run->io.port;
		}
		u64 took = now() - begin;
		best = took < best ? took : best;
	}
	printf("%llu %.2f\n", (unsigned long long)ports, (double)best / (double)count);
}

static void read_memory(size_t size)
{
	int fd = memfd_create("guest-memory", 0);
	must(fd >= 0 && !ftruncate(fd, (off_t)size), "memfd");
	unsigned char *from = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), *to = malloc(size);
	must(from != MAP_FAILED && to, "memory");
	memset(from, 0x5a, size);
	u64 best = ~0ull, sum = 0;
	for (int round = 0; round < ROUNDS; round++) {
		u64 begin = now();
		memcpy(to, from, size);
		u64 took = now() - begin;
		sum += to[size - 1];
		best = took < best ? took : best;
	}
	printf("%llu %.2f\n", (unsigned long long)sum, (double)best);
}

int main(int count, char **arguments)
{
	if (count == 4 && !strcmp(arguments[1], "exits"))
		exits(strtoull(arguments[2], NULL, 0), arguments[3]);
	else if (count == 3 && !strcmp(arguments[1], "read"))
		read_memory(strtoull(arguments[2], NULL, 0));
	else {
		fprintf(stderr, "usage: kvm-reference exits N FILE | read N\n");
		return 2;
	}
	return 0;
}
