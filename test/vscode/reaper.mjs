// Cleans up after another process, however that one ends: its input is that process's end of a pipe, which the
// kernel closes even after SIGKILL. Lines of input: `{"kill": pid}` (a process group), `{"remove": path}`.
import { existsSync, rmSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';

const jobs = (await text(process.stdin)).split('\n').filter(Boolean).map(JSON.parse);
const groups = jobs.flatMap((job) => (job.kill ? [job.kill] : []));

/** Signals the groups and returns whether any still had members. */
const signal = (name) =>
  groups.filter((group) => {
    try {
      process.kill(-group, name);
      return true;
    } catch {
      return false;
    }
  }).length > 0;

signal('SIGTERM');
for (let waited = 0; waited < 1500 && signal(0); waited += 50) await sleep(50);
signal('SIGKILL');
// A helper outside the groups, such as a browser's crash handler, may write once more while it ends.
const folders = jobs.flatMap((job) => (job.remove ? [job.remove] : []));
for (let attempt = 0; attempt < 10 && folders.some((folder) => existsSync(folder)); attempt++) {
  if (attempt > 0) await sleep(200);
  for (const folder of folders) {
    try {
      rmSync(folder, { recursive: true, force: true });
    } catch {} // not empty after all: next time
  }
}
