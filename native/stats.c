/* SPDX-License-Identifier: MIT */
/* KVM's binary statistics (Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD). */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "helper.h"

static bool read_at(int fd, void *bytes, size_t length, off_t offset)
{
	return pread(fd, bytes, length, offset) == (ssize_t)length;
}

static int one_set(int of, struct text *json)
{
	int fd = ioctl(of, KVM_GET_STATS_FD, NULL);
	if (fd < 0)
		return fail(errno, "KVM_GET_STATS_FD: %s", strerror(errno));
	struct kvm_stats_header header;
	int error = 0;
	const char *comma = "";
	text_add(json, "{");
	if (!read_at(fd, &header, sizeof(header), 0) || header.name_size > 1024 || header.num_desc > 4096)
		error = fail(EPROTO, "KVM's statistics have a header that makes no sense");
	size_t step = sizeof(struct kvm_stats_desc) + header.name_size;
	struct kvm_stats_desc *desc = error ? NULL : calloc(1, step + 1);
	for (u32 i = 0; desc && i < header.num_desc; i++) {
		u64 values[64];
		if (!read_at(fd, desc, step, (off_t)(header.desc_offset + i * step)))
			break;
		size_t count = desc->size < 64 ? desc->size : 64;
		if (!count || !read_at(fd, values, 8 * count, (off_t)(header.data_offset + desc->offset)))
			continue;
		text_add(json, "%s", comma);
		text_json(json, desc->name);
		text_add(json, count == 1 ? ":" : ":[");
		for (size_t at = 0; at < count; at++)
			text_add(json, "%s%llu", at ? "," : "", (unsigned long long)values[at]);
		text_add(json, count == 1 ? "" : "]");
		comma = ",";
	}
	free(desc);
	close(fd);
	text_add(json, "}");
	return error;
}

int stats_json(struct vm *vm, struct text *json)
{
	const char *lacks = vm_lacks(vm, "statistics");
	if (*lacks)
		return fail(EOPNOTSUPP, "%s", lacks);
	text_add(json, "{\"vm\":");
	/* KVM opens the statistics of a vCPU only outside of KVM_RUN. */
	vm_quiesce(vm);
	int error = one_set(vm->fd, json);
	text_add(json, ",\"vcpus\":[");
	for (int i = 0; !error && i < vm->vcpu_count; i++) {
		text_add(json, i ? "," : "");
		error = one_set(vm->vcpus[i]->fd, json);
	}
	vm_unquiesce(vm);
	text_add(json, "]}");
	return error;
}
