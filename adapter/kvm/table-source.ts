/** Who tells what KVM has built: the kernel's own memory, its tracepoints, or nobody. */
export const TABLE_SOURCES = ['kernel', 'events', 'none'] as const;
export type TableSource = (typeof TABLE_SOURCES)[number];
