import { Random } from '../../adapter/conform/random.ts';

/** How L1 runs its guest, and on what. */
export interface NestedShape {
  /** Words behind `second-stage`. */
  readonly second: string;
  /** Words of L1's own second stage; absent: it gives its guest tables of L1-physical addresses. */
  readonly stage?: string;
  readonly statements: number;
  /** Changes of slots, dirty logging, notifiers. */
  readonly host: boolean;
  /**
   * As KVM can run it: L1 first touches all that it or its guest may be given, and puts a `ret` there, without which the host would have
   * to; its guest begins with an access, which reads the root table that the code on KVM reads before.
   */
  readonly ownCode?: boolean;
  /** L1 also maps and unmaps what its guest finds a gigabyte further up, for which tables of upper levels come and go. */
  readonly far?: boolean;
}

/** Where L1's tables for its guest are kept, and where L1 itself sees them. */
export const STAGE_TABLES = 0x1800000;
const SEEN_TABLES = 0x10000000;
/** Where L1 sees the rest of its memory from 16M on, and where in each page a `ret` is. */
const SEEN = 0x11000000;
const CODE = '0x800';
/** L2's addresses of what is far, and its physical ones. */
const FAR_GVA = 0x800000;
const FAR_GPA = 0x40000000;

/** A program in which L1 runs a guest, edits its tables and uses memory itself: a seed determines it. */
export function randomNestedProgram(
  seed: number,
  { second, stage, statements, host, ownCode, far }: NestedShape,
): string {
  const random = new Random(seed, 1);
  const hex = (value: number): string => `0x${value.toString(16)}`;
  const farPage = (): number => random.below(2) * 0x200000 + random.below(2) * 4096;
  const page = (isL2 = false): string =>
    hex(far && isL2 && random.below(3) === 0 ? FAR_GVA + farPage() : 0x400000 + random.below(12) * 4096);
  const rights = (): string => random.pick(['r--', 'rw-', 'r-x', 'rwx']);
  const access = (isL2 = false): string => {
    const kind = random.pick(['read', 'write', 'write', 'fetch']);
    return `${random.pick(['', '', 'user '])}${kind} ${page(isL2)}${ownCode && kind === 'fetch' ? ` + ${CODE}` : ''}${kind === 'write' ? ` = ${random.below(1000)}` : ''}`;
  };
  /** How many tables lie above the one that maps L2's first 2M. */
  const last = stage?.includes('5-level') ? 4 : 3;
  const own = (isL2 = false): string => {
    const at = page();
    switch (random.below(7)) {
      case 0:
        return `protect ${at} +4K ${rights()} ${random.pick(['user', 'supervisor'])}\n    invlpg ${at}`;
      case 1:
        return `cr0.wp = ${random.below(2)}`;
      case 2:
        return `cr4.${random.pick(['smep', 'smap', 'pge'])} = ${random.below(2)}`;
      default:
        return access(isL2);
    }
  };
  const l2Page = (): string => hex(random.below(16) * 4096);
  const l1Page = (): string => hex(random.pick([0x1000000, 0x1400000]) + random.below(16) * 4096);
  const l1 = (): string => {
    const inner = Array.from(
      { length: 1 + random.below(5) },
      (_, at) => `    ${ownCode && at === 0 ? access(true) : own(true)}\n`,
    ).join('');
    if (far && random.below(5) === 0) {
      const at = hex(FAR_GPA + farPage());
      return random.pick([
        `map ${at} -> ${l1Page()} +4K ${rights()} in n`,
        `unmap ${at} +4K in n`,
        `unmap ${hex(FAR_GPA)} +4M in n`,
        `map ${hex(FAR_GPA)} -> 0x1200000 2M ${rights()} in n`,
      ]);
    }
    switch (random.below(stage === undefined ? 5 : 10)) {
      case 0:
      case 1:
      case 2:
        return `enter l2 {\n${inner}  }`;
      case 3:
        return own();
      case 4:
        return 'cr3 = l1';
      case 5:
        return `map ${l2Page()} -> ${l1Page()} +4K ${rights()} in n${random.pick(['', second.includes('ept') ? '\n  invept n' : ''])}`;
      case 6:
        return `protect ${l2Page()} +4K ${rights()} in n`;
      case 7:
        return second.includes('ept') ? `invept ${random.pick(['n', 'all'])}` : own();
      case 8:
        return `unmap ${l2Page()} +4K in n\n  map ${l2Page()} -> ${l1Page()} +8K ${rights()} in n`;
      default: {
        // Into L1's tables by an ordinary store: another entry in the last level, the same in one above.
        const table = 4096 * random.below(last + 1);
        const [to, from] = [random.below(16), random.below(16)].map((index) => 8 * index);
        const source = table === 4096 * last ? from : to;
        return `write ${hex(SEEN_TABLES + table)} + ${to} = u64(${hex(STAGE_TABLES + table)} + ${source})`;
      }
    }
  };
  const hostStatement = (): string =>
    random.pick([
      'zap all',
      `migrate ${l1Page()} +8K`,
      `unmap ${l1Page()} +8K`,
      'log dirty slot 0 on',
      'log dirty slot 0 off',
      'zap 0x1000000 +64K',
    ]);
  const touches = (): string[] => [
    ...[0, 0x200000, 0x400000].flatMap((at) =>
      Array.from({ length: 24 }, (_, each) => `  write.1 ${hex(SEEN + at + each * 4096)} + ${CODE} = 0xc3`),
    ),
    // L2's tables, and their neighbours.
    ...Array.from({ length: 8 }, (_, each) => `  read ${hex(SEEN + 0x280000 + each * 4096)}`),
  ];
  const lines = (count: number, make: () => string): string[] => Array.from({ length: count }, () => `  ${make()}`);
  return [
    'machine x86-64 {',
    `  memory 0 +32M${random.pick(['', ' huge 2M'])}`,
    `  second-stage ${second}`,
    '  sanitize',
    '}',
    ...(stage === undefined
      ? []
      : [
          `nested n ${stage} {`,
          `  tables at ${hex(STAGE_TABLES)}`,
          '  map 0 -> 0x1000000 +64K',
          '  map 0x200000 -> 0x1200000 2M',
          '}',
        ]),
    'guest l1 {',
    '  map 0x400000 -> 0x1000000 +48K rwx user',
    `  map ${hex(SEEN_TABLES)} -> ${hex(STAGE_TABLES)} +64K rw-`,
    ...(ownCode ? [`  map ${hex(SEEN)} -> 0x1000000 +6M 4K rw-`] : []),
    '}',
    `guest l2 ${stage === undefined ? '' : 'in n '}{`,
    ...(stage === undefined ? ['  tables at 0x1600000'] : ['  tables at 0x280000']),
    '  map 0x400000 -> 0 +40K rwx user',
    '  map 0x40a000 -> 0x200000 +8K rwx',
    ...(far ? [`  map ${hex(FAR_GVA)} -> ${hex(FAR_GPA)} +4M 4K rwx user`] : []),
    '}',
    'vcpu 0 in l1 {',
    ...(ownCode ? touches() : []),
    ...lines(statements, l1),
    '}',
    ...(host ? ['host h {', '  wait until accesses >= 3', ...lines(6, hostStatement), '}'] : []),
  ].join('\n');
}
