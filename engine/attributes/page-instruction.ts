import type { Walk } from '../guest/walk.ts';
import type { Machine } from '../machine.ts';
import { hex, pageOffset } from '../memory/words.ts';
import type { PageInstruction, PendingAccess, Task } from '../operation.ts';
import { pvalidate, RMP_RESULTS, type RmpResult, rmpAdjust } from './rmp.ts';
import { acceptPage, sharedBit } from './tdx.ts';
import { vmplOf } from './vmpl.ts';

// PVALIDATE, RMPADJUST and TDG.MEM.PAGE.ACCEPT: instructions that are translated as a private read is, and leave no translation in the TLB.

const PAGES_2M = 512;

/** How an instruction is told, and on what: `vCPU 0: PVALIDATE of 0x1000`. */
const named = ({ name }: Task, { page, address }: PendingAccess): string => `${name}: ${page!.name} of ${hex(address)}`;

const failed = (result: RmpResult): string => `fails with ${result} (${RMP_RESULTS[result]})`;

/** What is wrong whatever the page is, so that none is looked for; undefined where nothing is. */
function wrongAtOnce(machine: Machine, vcpu: number, address: bigint, page: PageInstruction): string | undefined {
  if (page.name === 'TDG.MEM.PAGE.ACCEPT') {
    const isPrivate = pageOffset(address) === 0 && address < BigInt(sharedBit(machine)) << 12n;
    return isPrivate ? undefined : 'fails: no private page begins there (TDX_OPERAND_INVALID)';
  }
  if (address % (page.level === 2 ? 0x20_0000n : 0x1000n) !== 0n) return failed('FAIL_INPUT');
  const own = vmplOf(machine, vcpu);
  const mayDo = page.name === 'PVALIDATE' ? own === 0 : own < page.vmpl;
  return mayDo ? undefined : failed('FAIL_PERMISSION');
}

/** Whether an instruction ends before any page is looked for; it is told why. */
export function endsAtOnce(machine: Machine, task: Task, access: PendingAccess): boolean {
  const wrong = wrongAtOnce(machine, task.vcpu, access.address, access.page!);
  if (wrong !== undefined) machine.warn(`${named(task, access)} ${wrong}`);
  return wrong !== undefined;
}

/** Does what an instruction does, to the page that a walk has led to and of which the checks have found nothing wrong. */
export function carryOut(machine: Machine, task: Task, access: PendingAccess, { gfn, pfn }: Walk): void {
  const page = access.page!;
  if (page.name === 'TDG.MEM.PAGE.ACCEPT') {
    if (!acceptPage(machine, pfn))
      machine.warn(`${named(task, access)} fails: the page has been accepted (TDX_PAGE_ALREADY_ACCEPTED)`);
    return;
  }
  const result =
    page.level === 2 && gfn % PAGES_2M !== 0
      ? 'FAIL_INPUT'
      : page.name === 'PVALIDATE'
        ? pvalidate(machine, pfn, page.level, page.validated)
        : rmpAdjust(machine, task.vcpu, pfn, page);
  if (result === 'unchanged') machine.warn(`${named(task, access)} changes nothing (CF): it is as it was`);
  else if (result !== 'SUCCESS') machine.warn(`${named(task, access)} ${failed(result)}`);
}
