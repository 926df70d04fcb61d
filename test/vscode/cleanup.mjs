// Temporary folders and process groups that must not outlive this process.
import { spawn } from 'node:child_process';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Starts the reaper; what is handed to it goes away at `run()`, or when this process ends in any way. */
export function createCleanup() {
  const reaper = spawn(process.execPath, [fileURLToPath(new URL('reaper.mjs', import.meta.url))], {
    detached: true, // Ctrl-C in a terminal reaches the whole foreground group: the reaper must survive it
    stdio: ['pipe', 'ignore', 'inherit'],
  });
  const ended = new Promise((resolve) => reaper.once('close', resolve));
  reaper.unref();
  reaper.stdin.unref();
  const tell = (job) => reaper.stdin.write(`${JSON.stringify(job)}\n`);
  return {
    /** A new folder below the system's temporary one. */
    folder(name) {
      const path = mkdtempSync(join(tmpdir(), `kvm-mmu-${name}-`));
      tell({ remove: path });
      return path;
    },
    /** A process that was spawned with `detached`, and all that it started. */
    group(pid) {
      tell({ kill: pid });
    },
    /** Ends and removes everything; resolves when nothing is left. */
    async run() {
      reaper.ref();
      reaper.stdin.end();
      await ended;
    },
  };
}

/**
 * Resolves with the reason once this process should end: a signal, or the end of whoever started it. npm passes a
 * signal on to the shell between it and a script, and not all shells pass it further.
 */
export function toldToEnd() {
  const parent = process.ppid;
  return new Promise((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => resolve(signal));
    const timer = setInterval(() => {
      if (process.ppid === parent) return;
      clearInterval(timer);
      resolve('the end of the process that started this one');
    }, 200);
    timer.unref();
  });
}
