import { Random } from '../../adapter/conform/random.ts';
import type { PagingName } from '../../engine/guest/registers.ts';

/** What random programs may do besides making accesses. */
export interface ProgramShape {
  /** Words behind `second-stage`, such as `tdp npt 5-level`; none: as the machine is by default. */
  readonly second?: string;
  readonly statements: number;
  /** Changes of slots, dirty logging, notifiers. */
  readonly host: boolean;
  /** Edits of the guest's tables, and its registers. */
  readonly guest: boolean;
  /** The program first writes a `ret` into every page, and fetches only those: nobody else need write to memory. */
  readonly ownCode?: boolean;
  /** Switches among so many address spaces, which map alike. */
  readonly spaces?: number;
  /** Maps, unmaps and touches pages elsewhere too, for which tables of upper levels come and go. */
  readonly far?: boolean;
  /** Maps, protects and touches the guest's large pages, of 4M or 2M. */
  readonly large?: boolean;
  /** NX huge pages, with host memory in pages of 2M, and code in the guest's large pages too. */
  readonly nx?: boolean;
  /** Of the guest; 4-level unless told. */
  readonly paging?: PagingName;
}

/** Where a program's data lie: guest-virtual pages, and the guest-physical ones that they are mapped to. */
export const FIRST_GVA = 0x400000;
export const FIRST_GPA = 0x200000;
/** Pages from there on. */
export const PAGES = 12;

/** Pages that no program begins with. */
const FAR_GVAS = [0x30000000, 0x80000000, 0x80200000, 0x80400000];
/** And those for which the root table is written. */
const FARTHEST = [0x80_0000_0000, 0x100_0000_0000, 0x180_0000_0000];
const LARGE_GVA = 0x1000000;

/** Where in each page a program's own code lies. */
const CODE = '0x800';

/** Register bits that programs toggle, beside CR0.WP. */
const TOGGLED: Readonly<Record<PagingName, readonly string[]>> = {
  '32-bit': ['cr4.smep', 'cr4.smap', 'cr4.pse'],
  pae: ['cr4.smep', 'cr4.smap', 'efer.nxe'],
  '4-level': ['cr4.smep', 'cr4.smap'],
  '5-level': ['cr4.smep', 'cr4.smap'],
};

const spaceName = (space: number): string => (space === 0 ? 'g' : `g${space}`);

/** A program that a seed determines. */
export function randomProgram(
  seed: number,
  { second, statements, host, guest, ownCode, spaces = 1, far, large, nx, paging = '4-level' }: ProgramShape,
): string {
  const random = new Random(seed, 0);
  const hex = (value: number): string => `0x${value.toString(16)}`;
  const farGva = (): string =>
    hex(random.pick(paging === '4-level' ? [...FAR_GVAS, ...FARTHEST] : FAR_GVAS) + random.below(2) * 4096);
  const largeSize = paging === '32-bit' ? '4M' : '2M';
  // So that they hold the pages that the programs' code is written to: KVM maps no neighbours that the host has not touched.
  const largeGpa = paging === '32-bit' ? 0 : FIRST_GPA;
  const largeGva = (): string => hex(LARGE_GVA + random.below(2) * 0x400000);
  const gva = (): string => hex(FIRST_GVA + random.below(PAGES) * 4096);
  const touched = (kind: string): string => {
    if (far && random.below(3) === 0) return farGva();
    // Only the pages of FIRST_GPA have code.
    if (large && (nx || kind !== 'fetch') && random.below(2) === 0)
      return `${largeGva()} + ${hex(FIRST_GPA - largeGpa + random.below(16) * 4096)}`;
    return gva();
  };
  const gpa = (): string => hex(random.pick([FIRST_GPA + random.below(16) * 4096, 0x2000000 + random.below(8) * 4096]));
  const rights = (): string => random.pick(['r--', 'rw-', 'r-x', 'rwx', 'rwx user', 'rw- user', 'r-- user']);
  const access = (): string => {
    const kind = random.pick(['read', 'write', 'write', 'fetch']);
    const offset = random.pick(['', ' + 8']);
    return `${random.pick(['', 'user '])}${kind} ${touched(kind)}${ownCode && kind === 'fetch' ? ` + ${CODE}` : offset}${kind === 'write' ? ` = ${random.below(1000)}` : ''}`;
  };
  const guestStatement = (): string => {
    if (spaces > 1 && random.below(4) === 0) return `cr3 = ${spaceName(random.below(spaces))}`;
    if (far && random.below(6) === 0) {
      const at = farGva();
      const edit = random.pick([`unmap ${at} +4K`, `map ${at} -> ${gpa()} +4K ${rights()}`]);
      return `${edit}\n  ${random.pick([`invlpg ${at}`, 'cr3 = g'])}`;
    }
    if (large && random.below(6) === 0) {
      const at = largeGva();
      const edit = random.pick([
        `map ${at} -> ${hex(largeGpa)} ${largeSize} ${rights()}`,
        `protect ${at} +${largeSize} ${rights()}`,
        `map ${at} -> ${gpa()} +4K ${rights()}`,
      ]);
      return `${edit}\n  ${random.pick([`invlpg ${at}`, 'cr3 = g'])}`;
    }
    switch (guest ? random.below(10) : 9) {
      case 0: {
        const at = gva();
        return `map ${at} -> ${gpa()} +4K ${rights()}\n  invlpg ${at}`;
      }
      case 1: {
        const at = gva();
        return `protect ${at} +4K ${rights()}\n  invlpg ${at}`;
      }
      case 2:
        // Directories of a role that is left are flooded sooner or later, as the stubs' own faults lead through one of their quarters
        // (clear_sp_write_flooding_count in FNAME(fetch)): where 32-bit directories are written the role stays.
        return paging === '32-bit' && (far || large) ? access() : `cr0.wp = ${random.below(2)}`;
      case 3:
        // Who judges leaves by the guest's entries of the end cannot have NX become a reserved bit: KVM keeps what it has.
        return `${random.pick([...TOGGLED[paging], ...(ownCode && paging === '4-level' ? ['efer.nxe'] : [])])} = ${random.below(2)}`;
      default:
        return access();
    }
  };
  let there = true;
  let logged = false;
  const hostStatement = (): string => {
    switch (random.below(6)) {
      case 0:
        logged = true;
        return 'log dirty slot 0 on';
      case 1:
        logged = false;
        return 'log dirty slot 0 off';
      case 2:
        return `migrate ${hex(FIRST_GPA + random.below(16) * 4096)} +${4 * (1 + random.below(3))}K`;
      case 3:
        there = !there;
        return there ? 'add slot 3 at 0x2000000 +32K' : 'delete slot 3';
      case 4:
        // On KVM slots go and come for it, and their log is taken first, which write-protects.
        if (!logged) return 'zap all';
        return `unmap ${hex(FIRST_GPA + random.below(16) * 4096)} +4K`;
      default:
        return `unmap ${hex(FIRST_GPA + random.below(16) * 4096)} +${4 * (1 + random.below(3))}K`;
    }
  };
  const lines = (count: number, make: () => string): string[] => Array.from({ length: count }, () => `  ${make()}`);
  const program = [
    'machine x86-64 {',
    `  memory 0 +16M${nx ? ' huge 2M' : ''}`,
    '  memory 0x2000000 +32K slot 3',
    ...(second === undefined ? [] : [`  second-stage ${second}`]),
    ...(nx ? ['  policy nx-huge-pages = on'] : []),
    '}',
    ...Array.from({ length: spaces }, (_, space) => [
      `guest ${spaceName(space)}${paging === '4-level' ? '' : ` ${paging}`} {`,
      ...(space > 0 ? [`  tables at ${hex(0x800000 + space * 0x10000)}`] : []),
      '  map 0x400000 -> 0x200000 +16K rwx',
      '  map 0x404000 -> 0x204000 +16K rwx user',
      '  map 0x408000 -> 0x2000000 +16K rw- user',
      ...(large ? [`  map ${hex(LARGE_GVA)} -> ${hex(largeGpa)} ${largeSize} rwx user`] : []),
      ...(ownCode ? ['  map 0x600000 -> 0x200000 +64K rw-', '  map 0x610000 -> 0x2000000 +32K rw-'] : []),
      '}',
    ]).flat(),
    'vcpu 0 in g {',
    ...(ownCode
      ? Array.from({ length: 24 }, (_, page) => `  write.1 ${hex(0x600000 + page * 4096)} + ${CODE} = 0xc3`)
      : []),
    ...lines(statements, guestStatement),
    '}',
    ...(host
      ? ['host h {', '  wait until accesses >= 1', ...lines(Math.ceil(statements / 4), hostStatement), '}']
      : []),
  ].join('\n');
  // Entries of 32 bits cannot withhold execution.
  return paging === '32-bit' ? program.replaceAll('rw-', 'rwx').replaceAll('r--', 'r-x') : program;
}
