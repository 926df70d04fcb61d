import { TraceError } from './errors.ts';

/** How the kernel lays out a page of its ring buffer, in bytes. */
export interface PageLayout {
  /** Of a whole page, its header included: 4096, unless the buffer's sub-buffers are larger. */
  readonly pageSize: number;
  /** Where records begin. */
  readonly data: number;
}

/** What all 64-bit kernels with small pages have. */
export const USUAL_LAYOUT: PageLayout = { pageSize: 4096, data: 16 };

/** Sub-buffers are at most this large: 128 pages of 64 KiB (trace_buffers of Linux 6.8). */
const LARGEST_PAGE = 1 << 23;
/** Less would not hold a header and the longest common record. */
const SMALLEST_PAGE = 1024;

/** Whether a page of the ring buffer can be this large, in bytes. */
export function isPageSize(bytes: number): boolean {
  return bytes >= SMALLEST_PAGE && bytes <= LARGEST_PAGE && bytes % 4 === 0;
}

/**
 * Reads tracefs's `events/header_page`, of which trace.dat has a copy.
 * @throws TraceError when the layout is none that can be read, with what it says
 */
export function parseHeaderPage(text: string): PageLayout {
  const field = (name: string): { offset: number; size: number } => {
    const found = new RegExp(`\\b${name};\\s*offset:(\\d{1,9});\\s*size:(\\d{1,9});`).exec(text);
    if (!found) throw new TraceError(`the trace’s header_page has no field ${name}`);
    return { offset: Number(found[1]), size: Number(found[2]) };
  };
  const timestamp = field('timestamp');
  const commit = field('commit');
  const data = field('data');
  if (commit.size === 4)
    throw new TraceError(
      'the trace is of a 32-bit kernel (header_page: commit has 4 bytes); only 64-bit ones can be read',
    );
  if (timestamp.offset !== 0 || timestamp.size !== 8 || commit.offset !== 8 || commit.size !== 8 || data.offset !== 16)
    throw new TraceError(
      `the trace’s header_page says timestamp at ${timestamp.offset} (${timestamp.size} bytes), commit at ${commit.offset} (${commit.size}), data at ${data.offset}: only 0 (8), 8 (8), 16 can be read`,
    );
  const pageSize = data.offset + data.size;
  if (!isPageSize(pageSize))
    throw new TraceError(
      `the trace’s header_page says pages of ${pageSize} bytes; from ${SMALLEST_PAGE} to ${LARGEST_PAGE} can be read`,
    );
  return { pageSize, data: data.offset };
}
