import { closeSync, fstatSync, openSync, readFileSync, readSync } from 'node:fs';
import type { KvmInfo } from '../rsp/info.ts';

/** A guest's memory in a helper of this machine: its memfd, opened through /proc. */
export class LocalRam {
  readonly #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** @returns undefined when the helper is on another machine, or its files may not be opened */
  static open({ pid, boot, memory }: KvmInfo): LocalRam | undefined {
    let fd: number;
    try {
      if (boot !== readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()) return undefined;
      fd = openSync(`/proc/${pid}/fd/${memory.fd}`, 'r');
    } catch {
      return undefined;
    }
    // The same process number may be another container's.
    if (fstatSync(fd).ino === memory.inode) return new LocalRam(fd);
    closeSync(fd);
    return undefined;
  }

  read(offset: bigint, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    readSync(this.#fd, bytes, 0, length, offset);
    return bytes;
  }

  close(): void {
    closeSync(this.#fd);
  }
}
