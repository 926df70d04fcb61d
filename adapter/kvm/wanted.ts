/** Who tells what KVM has built: the kernel's own memory, its tracepoints, or nobody. */
export const TABLE_SOURCES = ['kernel', 'events', 'none'] as const;
export type TableSource = (typeof TABLE_SOURCES)[number];

/** What is wanted of KVM beyond the machine itself. */
export interface WantedOfKvm {
  /** Who is to tell of its tables. */
  readonly tables?: TableSource;
  /** The file in which its events are to be saved. */
  readonly record?: string;
}
