import { existsSync } from 'node:fs';
import { join } from 'node:path';

/** The project's root: the adapter runs from `dist/`, and unbundled, in tests, from the root itself. */
const root = typeof __dirname === 'string' ? join(__dirname, '..') : process.cwd();

/** What `make -C native` builds beside this adapter. @throws with words when it is not there */
export function built(name: string): string {
  const path = join(root, 'native', 'build', name);
  if (!existsSync(path))
    throw new Error(`${path} is not built: make -C native, with a C compiler and the kernel’s headers`);
  return path;
}
