/** A frame of a stack. */
export interface FrameRef {
  readonly task: number;
  /** Index in the task's stack; −1: the statement below it. */
  readonly depth: number;
}

/**
 * The id by which a client knows a frame: the same for as long as the session is stopped. The number of the stop is part of it, so that
 * a frame of an earlier stop is told apart.
 */
export function frameId(stop: number, { task, depth }: FrameRef): number {
  return (stop % 1024) * 2 ** 20 + task * 2 ** 10 + depth + 2;
}

/** The frame of an id; undefined where it is of an earlier stop. */
export function frameOf(stop: number, id: number): FrameRef | undefined {
  const frame = { task: Math.floor(id / 2 ** 10) % 2 ** 10, depth: (id % 2 ** 10) - 2 };
  return id === frameId(stop, frame) ? frame : undefined;
}
