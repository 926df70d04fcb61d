import { heldSpinlock } from '../lock-steps.ts';
import type { Machine } from '../machine.ts';
import type { Gfn, Pfn } from '../memory/words.ts';
import { defineFunction, type PendingAccess, returns, type Task } from '../operation.ts';
import { readWithoutKey } from './ciphertext.ts';
import { rmpEntry } from './rmp.ts';
import { ownerWords } from './state.ts';
import { poison } from './tdx.ts';

// The kernel's direct map of all host memory: in 2M, until a part of one must be left alone.

const PAGES_2M = 512;
const blockOf = (pfn: Pfn): number => Math.floor(pfn / PAGES_2M);

/** Splitting a block of the direct map so that a 4K of it can be private; a whole 2M needs none. */
export function splitDirectMap(machine: Machine, pfn: Pfn): void {
  const { split } = machine.attributes;
  if (!split.get(blockOf(pfn))) split.set(machine, blockOf(pfn), true);
}

/** Takes a page out of the direct map. */
export function removeFromDirectMap(machine: Machine, pfn: Pfn): void {
  splitDirectMap(machine, pfn);
  if (!machine.attributes.holes.get(pfn)) machine.attributes.holes.set(machine, pfn, true);
}

export function restoreToDirectMap(machine: Machine, pfn: Pfn): void {
  if (machine.attributes.holes.get(pfn)) machine.attributes.holes.set(machine, pfn, undefined);
}

/** might_sleep: what the kernel says of a task that could be put to sleep while it spins others out. */
export function mightSleep(machine: Machine, task: Task, what: string, gfn: Gfn): void {
  const lock = heldSpinlock(task);
  if (lock === undefined) return;
  const text = `BUG: scheduling while atomic: ${task.name} calls ${what}, which may sleep, and holds ${lock}`;
  machine.warn(text);
  machine.hazard('sleep-in-atomic', text, gfn);
}

interface HostAccess {
  readonly access: PendingAccess;
  readonly gfn: Gfn;
  readonly pfn: Pfn;
}

/** What a host thread's access to a frame ends in: undefined, or why it is fatal. */
function fatal(
  machine: Machine,
  { access, pfn }: HostAccess,
): { hazard: 'direct-map-hole' | 'fatal-rmp-fault'; why: string } | undefined {
  const { holes, split } = machine.attributes;
  if (holes.get(pfn)) return { hazard: 'direct-map-hole', why: 'the direct map leaves it out' };
  // The processor checks writes alone, and of a large page all that it covers.
  if (access.kind !== 'write') return undefined;
  const isSplit = split.get(blockOf(pfn)) === true;
  const first = isSplit ? pfn : blockOf(pfn) * PAGES_2M;
  for (let frame = first; frame < first + (isSplit ? 1 : PAGES_2M); frame++) {
    const entry = rmpEntry(machine, frame);
    if (!entry) continue;
    const whose = `${ownerWords(entry)}, gfn 0x${entry.gfn.toString(16)}`;
    return {
      hazard: 'fatal-rmp-fault',
      why: frame === pfn ? `it is ${whose}` : `it is mapped with a 2M page that covers ${whose}`,
    };
  }
  return undefined;
}

export const directMapAccess = defineFunction<HostAccess>({
  name: 'direct_map_access',
  where: 'a kernel thread',
  about: 'The host’s kernel reads or writes guest memory through its own map of all memory.',
  steps: [
    {
      name: 'access',
      text: 'read or write: where the page is left out, or a guest’s page lies under the same entry and is written, the kernel dies',
      run(machine, task, locals) {
        const { access, gfn, pfn } = locals;
        const end = fatal(machine, locals);
        if (end) {
          const text = `${task.name} ${access.kind === 'write' ? 'writes' : 'reads'} hpa 0x${(pfn * 4096).toString(16)} through the direct map: ${end.why}: BUG: unable to handle page fault`;
          machine.hazard(end.hazard, text, gfn);
          machine.fail(task, text);
          return returns(task, 0);
        }
        const offset = Number(access.address % 4096n);
        if (access.kind === 'write') {
          machine.storeBytes(pfn, offset, access.size, access.value);
          poison(machine, pfn);
        } else task.loaded = readWithoutKey(machine, pfn, offset, access.size);
        return returns(task, 0);
      },
    },
  ],
});
