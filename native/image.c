/* SPDX-License-Identifier: MIT */
/* Guest images: ELF64 files, and flat ones, entered in 64-bit mode. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helper.h"

#define LARGE (2ULL << 20)
/* Every address below this is mapped to itself. */
#define IDENTITY (4ULL << 30)
#define ENTRY_TABLE 0x3ULL
#define ENTRY_LARGE 0x83ULL

/* Tables at the end of the first slot, growing downwards. */
struct tables {
	struct vm *vm;
	u64 root;
	u64 next;
	u64 lowest;
};

static u64 table_new(struct tables *tables)
{
	static const u8 zeros[PAGE];
	if (tables->next < tables->lowest + PAGE)
		return 0;
	tables->next -= PAGE;
	return memory_write(tables->vm, tables->next, zeros, PAGE) == PAGE ? tables->next : 0;
}

/* Maps one page (4K at level 1, 2M at level 2), writable and executable. */
static int map_page(struct tables *tables, u64 address, u64 gpa, int level)
{
	u64 table = tables->root;
	for (int at = 4; at > level; at--) {
		u64 place = table + (address >> (12 + 9 * (at - 1)) & 0x1ff) * 8, entry = 0;
		memory_read(tables->vm, place, &entry, 8);
		if (entry & 0x80)
			/* The identity map has it as a large page. */
			return fail(EINVAL, "0x%llx is mapped to itself: a segment there needs equal virtual and physical addresses",
				    (unsigned long long)address);
		if (!(entry & 1)) {
			u64 fresh = table_new(tables);
			if (!fresh)
				return fail(ENOSPC, "the first slot has no room for the tables of this image");
			entry = fresh | ENTRY_TABLE;
			memory_write(tables->vm, place, &entry, 8);
		}
		table = entry & 0x000ffffffffff000ULL;
	}
	u64 entry = gpa | (level == 2 ? ENTRY_LARGE : ENTRY_TABLE);
	memory_write(tables->vm, table + (address >> (12 + 9 * (level - 1)) & 0x1ff) * 8, &entry, 8);
	return 0;
}

static int tables_start(struct vm *vm, struct tables *tables)
{
	const struct slot *first = &vm->slots[0];
	if (!first->used)
		return fail(ENOSPC, "an image needs memory: give --memory");
	*tables = (struct tables){ .vm = vm, .next = first->gpa + first->size, .lowest = first->gpa };
	tables->root = table_new(tables);
	if (!tables->root)
		return fail(ENOSPC, "the first slot has no room for page tables");
	for (u64 address = 0; address < IDENTITY; address += LARGE) {
		int error = map_page(tables, address, address, 2);
		if (error)
			return error;
	}
	return 0;
}

static int put(struct vm *vm, const char *path, u64 gpa, const void *bytes, size_t length)
{
	size_t done = memory_write(vm, gpa, bytes, length);
	if (done != length)
		return fail(EFAULT, "%s does not fit: there is no memory at gpa 0x%llx", path,
			    (unsigned long long)(gpa + done));
	return 0;
}

static int load_segment(struct vm *vm, const char *path, const u8 *file, size_t size, const Elf64_Phdr *segment,
			struct tables *tables)
{
	if (segment->p_offset > size || segment->p_filesz > size - segment->p_offset)
		return fail(ENOEXEC, "%s is cut off: a segment ends at 0x%llx, the file at 0x%zx", path,
			    (unsigned long long)(segment->p_offset + segment->p_filesz), size);
	if (segment->p_memsz < segment->p_filesz)
		return fail(ENOEXEC, "%s: a segment is larger in the file than in memory", path);
	int error = put(vm, path, segment->p_paddr, file + segment->p_offset, segment->p_filesz);
	static const u8 zeros[PAGE];
	for (u64 done = segment->p_filesz; !error && done < segment->p_memsz;) {
		u64 some = segment->p_memsz - done < PAGE ? segment->p_memsz - done : PAGE;
		error = put(vm, path, segment->p_paddr + done, zeros, some);
		done += some;
	}
	if (error || segment->p_vaddr == segment->p_paddr)
		return error;
	if ((segment->p_vaddr ^ segment->p_paddr) % PAGE)
		return fail(ENOEXEC, "%s: a segment's virtual and physical addresses differ within the page", path);
	u64 skew = segment->p_paddr % PAGE;
	for (u64 done = 0; !error && done < segment->p_memsz + skew; done += PAGE)
		error = map_page(tables, segment->p_vaddr - skew + done, segment->p_paddr - skew + done, 1);
	return error;
}

static int load_elf(struct vm *vm, const char *path, const u8 *file, size_t size, struct tables *tables, u64 *entry)
{
	Elf64_Ehdr header;
	if (size < sizeof(header))
		return fail(ENOEXEC, "%s is cut off: %zu bytes are no ELF file", path, size);
	memcpy(&header, file, sizeof(header));
	if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB)
		return fail(ENOEXEC, "%s is a 32-bit or big-endian ELF file: a guest is 64-bit x86", path);
	if (header.e_machine != EM_X86_64)
		return fail(ENOEXEC, "%s is made for another machine (%u): x86-64 is needed", path, header.e_machine);
	if (header.e_type != ET_EXEC)
		return fail(ENOEXEC, "%s is not linked to a fixed address (type %u): link it with -static -no-pie and a script of its own",
			    path, header.e_type);
	if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phoff > size ||
	    header.e_phnum > (size - header.e_phoff) / sizeof(Elf64_Phdr))
		return fail(ENOEXEC, "%s is cut off: its program headers lie beyond its end", path);
	int loaded = 0;
	for (int i = 0; i < header.e_phnum; i++) {
		Elf64_Phdr segment;
		memcpy(&segment, file + header.e_phoff + (size_t)i * sizeof(segment), sizeof(segment));
		if (segment.p_type != PT_LOAD)
			continue;
		int error = load_segment(vm, path, file, size, &segment, tables);
		if (error)
			return error;
		loaded++;
	}
	if (!loaded)
		return fail(ENOEXEC, "%s has no segment to load", path);
	*entry = header.e_entry;
	return 0;
}

int image_load(struct vm *vm, const char *path, u64 gpa)
{
	struct stat status;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status)) {
		int error = errno;
		if (fd >= 0)
			close(fd);
		return fail(error, "%s cannot be read: %s", path, strerror(error));
	}
	if (!S_ISREG(status.st_mode) || !status.st_size) {
		close(fd);
		return fail(ENOEXEC, S_ISREG(status.st_mode) ? "%s is empty" : "%s is not a file", path);
	}
	size_t size = (size_t)status.st_size;
	u8 *file = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (file == MAP_FAILED)
		return fail(errno, "%s cannot be read: %s", path, strerror(errno));
	struct tables tables;
	u64 entry = gpa;
	int error = tables_start(vm, &tables);
	if (!error) {
		if (size >= SELFMAG && !memcmp(file, ELFMAG, SELFMAG))
			error = load_elf(vm, path, file, size, &tables, &entry);
		else
			error = put(vm, path, gpa, file, size);
	}
	munmap(file, size);
	/* Each vCPU has a page of stack below the tables. */
	for (int i = 0; !error && i < vm->vcpu_count; i++) {
		error = set_long_mode(vm->vcpus[i]->fd, entry, tables.next - (u64)i * PAGE, tables.root, (u64)i, 0);
		if (error)
			fail(-error, "KVM refuses the first registers of vCPU %d: %s", i, strerror(-error));
	}
	vm->written = false;
	return error;
}
