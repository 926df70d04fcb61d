import { MissingFrames } from '../engine/mirror.ts';

/** Asks a question again for as long as it lacks memory that is far away. It must not change anything before it has all. */
export async function withFrames<T>(
  fetch: (missing: MissingFrames) => Promise<void>,
  ask: () => T | Promise<T>,
): Promise<T> {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof MissingFrames)) throw error;
      await fetch(error);
    }
  }
}
