import { existsSync } from 'node:fs';
import { join } from 'node:path';

/** What `make -C native` builds beside this adapter, which runs from `dist/`. @throws with words when it is not there */
export function built(name: string): string {
  const path = join(__dirname, '..', 'native', 'build', name);
  if (!existsSync(path))
    throw new Error(`${path} is not built: make -C native, with a C compiler and the kernel’s headers`);
  return path;
}
