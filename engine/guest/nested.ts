import { EPT, EPT_5, nestedEpt } from '../formats/ept.ts';
import type { Machine } from '../machine.ts';
import type { Gfn } from '../memory/words.ts';
import type { GuestTables } from '../program.ts';
import type { GuestMode, NestedStage, Vcpu } from '../vcpu.ts';
import { PFERR_USER, permissionBitmaps } from './permission.ts';
import {
  guestFormat,
  LONG_MODE,
  PAGING,
  PAGING_REGISTERS,
  type PagingMode,
  pagingMode,
  type Registers,
} from './registers.ts';
import { finishWalk, type Reference, startWalk, type Walk, type WalkMemory } from './walk.ts';

// Nested guests: L1, which KVM runs, has second-stage tables for guests of its own (L2).

/** EPTP: write-back memory, bit 6 for accessed and dirty bits (SDM vol. 3, 24.6.11). */
const EPTP_WRITE_BACK = 6n;
const EPTP_ACCESSED_DIRTY = 1n << 6n;
/** CR0.PE and PG: of L1's CR0 nested paging takes no other bit (nested_svm_init_mmu_context). */
const NPT_CR0 = 0x8000_0001n;
const CR4_PKE = 1n << 22n;

export function guestNamed(machine: Machine, name: string): GuestTables {
  return machine.program.guests.find((guest) => guest.name === name)!;
}

const isFive = ({ paging }: GuestTables): boolean => paging === '5-level';

/** How entries of a guest's tables are read as they are made, before a vCPU runs: its own, or L1's for a nested guest. */
export function tableFormatOf(machine: Machine, guest: GuestTables) {
  if (guest.nested && machine.config.second === 'ept') return eptFormat(machine, guest);
  return guestFormat(machine.cpu, true, PAGING[guest.paging ?? '4-level']);
}

function eptFormat(machine: Machine, guest: GuestTables) {
  return guestFormat(machine.cpu, true, nestedEpt(isFive(guest) ? EPT_5 : EPT, guest.nested!.accessedDirty));
}

/** L1's second-stage tables of a name, as its processor walks them with L1's registers. */
export function nestedStage(machine: Machine, name: string, l1?: Registers): NestedStage {
  const guest = guestNamed(machine, name);
  const rootGfn = machine.guestRoots.get(name)!;
  const root = BigInt(rootGfn) << 12n;
  if (machine.config.second === 'ept') {
    const levels = isFive(guest) ? 5n : 4n;
    const ad = guest.nested!.accessedDirty ? EPTP_ACCESSED_DIRTY : 0n;
    const mode = eptMode(machine, guest, rootGfn);
    return { name, pgd: root | EPTP_WRITE_BACK | ((levels - 1n) << 3n) | ad, mode };
  }
  const { cr4, efer } = l1 ?? { ...LONG_MODE, ...PAGING_REGISTERS[guest.paging ?? '4-level'] };
  const registers = { ...LONG_MODE, cr0: NPT_CR0, cr3: root, cr4: cr4 & ~CR4_PKE, efer, cpl: 3n };
  return { name, pgd: root, mode: pagingMode(registers, machine.cpu) };
}

function eptMode(machine: Machine, guest: GuestTables, rootGfn: Gfn): PagingMode {
  // Of the processor's state nothing counts (update_permission_bitmask, ept).
  const protection = { wp: true, nxe: true, smep: false, smap: false, ac: false, pke: false, pkru: 0 };
  return {
    ...protection,
    paging: true,
    format: eptFormat(machine, guest),
    rootGfn,
    rootEntry: 0,
    addressBits: isFive(guest) ? 57 : 48,
    reportsFetch: false,
    permissions: permissionBitmaps(protection),
    pdptrs: undefined,
    pge: false,
    pcide: false,
    pcid: 0,
    cpl: 3,
  };
}

/**
 * NPT is walked as L1's CR4 and EFER say when it enters its guest.
 * @throws RangeError where L1's tables are made otherwise
 */
export function checkNested(machine: Machine, vcpu: Vcpu, name: string): void {
  const { within } = guestNamed(machine, name);
  if (within === undefined || machine.config.second === 'ept') return;
  const made = guestNamed(machine, within).paging ?? '4-level';
  const { paging, format } = vcpu.mode;
  if (!paging || format.spec !== PAGING[made])
    throw new RangeError(
      `enter ${name}: L1 runs ${paging ? `with ${format.spec.title} tables` : 'without paging'}, and ${within} is ${made}: its processor would read it otherwise`,
    );
}

/** What a vCPU becomes that enters a guest of the program. */
export function guestModeOf(machine: Machine, vcpu: Vcpu, name: string): { mode: GuestMode; registers: Registers } {
  const guest = guestNamed(machine, name);
  const l1 = vcpu.registers;
  const first: Registers = {
    ...LONG_MODE,
    ...PAGING_REGISTERS[guest.paging ?? '4-level'],
    cr3: BigInt(machine.guestRoots.get(name)!) << 12n,
  };
  const nested = guest.within === undefined ? undefined : nestedStage(machine, guest.within, l1);
  return { mode: { guest: name, l1, nested }, registers: vcpu.saved[name] ?? first };
}

/** KVM's walk of L1's tables for a frame of L2's, which sets A and D. @param bits the access, in PFERR_* bits */
export function walkNested(machine: Machine, mode: PagingMode, frame: Gfn, bits: number): Walk {
  const walk = startWalk(mode, undefined, Number(frame), { bits, implicit: false });
  return finishWalk(walk, mode, undefined, machine.walkMemory);
}

/** The same of one who only looks. @param trace gets the entries that are read */
export function lookAtNested(machine: Machine, mode: PagingMode, frame: Gfn, trace?: Reference[]): Walk {
  const walk = startWalk(mode, undefined, Number(frame), { bits: PFERR_USER, implicit: false });
  return finishWalk(walk, mode, undefined, { ...machine.walkMemory, setBits() {} }, trace);
}

/** L1's frame for one of L2's; −1 where L1's tables lead nowhere. */
export function l1Frame(machine: Machine, mode: PagingMode, frame: Gfn): Gfn {
  const walk = lookAtNested(machine, mode, frame);
  return walk.status === 'done' ? walk.gfn : -1;
}

/** Memory as KVM walks L2's own tables in it: L2's frames lie where L1's tables say. */
export function l2Memory(machine: Machine, mode: PagingMode): WalkMemory {
  const own = (gfn: Gfn): Gfn => l1Frame(machine, mode, gfn);
  return {
    ...machine.walkMemory,
    resolve: (gfn) => {
      const frame = own(gfn);
      return frame < 0 ? -1 : machine.resolve(frame);
    },
    mayUpdate: (gfn) => machine.walkMemory.mayUpdate(own(gfn)),
  };
}
