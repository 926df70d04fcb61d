import { existsSync } from 'node:fs';
import { spawnHelper } from '../rsp/node-stream.ts';
import type { ByteStream } from '../rsp/stream.ts';
import { built } from './built.ts';

/** A file of this machine that a helper is to load, at its own addresses or at `at`. */
export interface HelperImage {
  readonly path: string;
  readonly at?: string;
}

/** Where helpers run: this machine, or a lab. */
export interface HelperPlace {
  /** Starts a helper. @throws Error in words for people */
  start(args: readonly string[], image?: HelperImage): Promise<ByteStream>;
  /** Ends what it is made of, and all helpers in it. */
  close(): void;
}

export function imageArguments(path: string, at: string | undefined): string[] {
  return ['--image', at === undefined ? path : `${path}@${at}`];
}

/** Helpers of this machine; `helper` is the executable, where it is not the one that was built here. */
export function thisMachine(helper?: string): HelperPlace {
  return {
    async start(args, image) {
      if (process.platform !== 'linux')
        throw new Error('KVM is there on Linux only; "connect" reaches a helper elsewhere');
      if (helper !== undefined && !existsSync(helper)) throw new Error(`there is no helper at ${helper}`);
      return spawnHelper(helper ?? built('kvm-mmu-helper'), [
        ...args,
        ...(image ? imageArguments(image.path, image.at) : []),
      ]);
    },
    close() {},
  };
}
