import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Kind, type LogEntry } from '../../engine/history/log.ts';
import { roleField, roleWords } from '../../engine/kernel/role.ts';
import { faultSentence } from '../../engine/queries/words.ts';
import { Run } from '../../engine/run.ts';
import type { FaultInfo } from '../../engine/tdp/fault.ts';
import { parseScenario } from '../../scenario/index.ts';
import { type NestedShape, randomNestedProgram } from './nested-programs.ts';

// A guest that runs guests of its own: guest_mmu shadows its second-stage tables, nested_mmu has L2's role.

const MORE = process.env.FUZZ_RUNS ? Number(process.env.FUZZ_RUNS) / 2000 : 1;

function run(text: string): Run {
  const { program, diagnostics } = parseScenario(text);
  assert.ok(program, diagnostics.map(({ span, message }) => `${span.line}: ${message}`).join('\n'));
  const made = new Run(program);
  assert.ok(made.runToEnd(100_000), 'still running');
  return made;
}

function holds(text: string): Run {
  const made = run(text);
  assert.deepEqual(made.machine.small.failures, []);
  assert.deepEqual(made.machine.small.warnings, []);
  return made;
}

const GUESTS = `guest l1 {
  map 0x400000 -> 0x200000 +64K
  map 0x500000 -> 0x1800000 +64K rw-
}
guest l2 in n {
  map 0x800000 -> 0x10000 +64K
}
`;
const machine = (second: string): string => `machine {
  memory 0 +64M
  second-stage ${second}
  sanitize
}
`;
const nested = (words = '', mapped = '+4M 4K'): string => `nested n ${words} {
  tables at 0x1800000
  map 0 -> 0x1000000 ${mapped}
}
`;

const logged = ({ machine: { log } }: Run): LogEntry[] =>
  Array.from({ length: log.length - log.first }, (_, index) => log.at(log.first + index));

/** Shadow pages in words, the upper ones first. */
const shadowPages = ({ machine: { pages } }: Run): string[] =>
  [...pages.values()]
    .filter(({ shadow }) => shadow)
    .sort((a, b) => b.level - a.level || a.gfn - b.gfn)
    .map(
      ({ gfn, role, shadow }) => `${roleWords(role)} of gfn 0x${gfn.toString(16)}${shadow!.unsync ? ', unsync' : ''}`,
    );

test('nested EPT: L2 runs on shadow pages of L1’s tables, in a role that knows nothing of CR0, CR4 and EFER', () => {
  const made = holds(`${machine('tdp ept 4-level')}${nested()}${GUESTS}
vcpu 0 in l1 {
  write 0x400000 = 1
  enter l2 {
    write 0x800000 = 7
    read 0x800000
    expect loaded == 7
  }
  read 0x400000
  expect loaded == 1
}
expect u64(0x1010000) == 7 && nested.entries == 1 && nested.exits == 1 && faults.guest == 0
`);
  assert.deepEqual(shadowPages(made), [
    'level 4, 8-byte, wux, !nx !wp, guest_mode of gfn 0x1800',
    'level 3, 8-byte, wux, !nx !wp, guest_mode of gfn 0x1801',
    'level 2, 8-byte, wux, !nx !wp, guest_mode of gfn 0x1802',
    'level 1, 8-byte, wux, !nx !wp, guest_mode of gfn 0x1803',
    'level 1, 8-byte, wux, !nx !wp, guest_mode of gfn 0x1804',
  ]);
  const { root, guest } = made.machine.vcpu(0).mmus;
  assert.equal(roleField(made.machine.page(root.root.pfn).role, 'direct'), 1);
  // EPTP12: write-back, four levels, accessed and dirty bits.
  assert.equal(guest.root.pgd, 0x180005en);
});

test('accessed and dirty bits of L1’s tables are set by KVM’s walk, and with no-ad nobody sets any, nor prefetches', () => {
  const body = 'vcpu 0 in l1 {\n  enter l2 {\n    write 0x800000 = 7\n    read 0x801000\n  }\n}\n';
  const bits = (made: Run, index: number): number =>
    Number(made.machine.readEntry(made.machine.resolve(0x1803), index));
  const withBits = holds(`${machine('tdp ept 4-level')}${nested()}${GUESTS}${body}`);
  assert.equal(bits(withBits, 0x10) & 0x300, 0x300, 'A and D of what was written');
  assert.equal(bits(withBits, 0x11) & 0x300, 0x100, 'A of what was read');
  const without = holds(`${machine('tdp ept 4-level')}${nested('no-ad')}${GUESTS}${body}`);
  assert.equal(bits(without, 0x10) & 0x300, 0);
  assert.ok(shadowPages(without).every((each) => each.includes('!ad')));
  const leaf = [...without.machine.pages.values()].find(({ gfn, shadow }) => shadow && gfn === 0x1803)!;
  const entry = without.machine.readEntry(leaf.pfn, 0x10);
  assert.equal((entry >> 52n) & 3n, 1n, 'KVM’s own mark: no A/D bits');
  assert.equal(entry & 0x300n, 0n);
});

test('what L1’s tables refuse is L1’s VM exit, with the entry that refused; L1 mends it, and L2 goes on', () => {
  const made = holds(
    `${machine('tdp ept 4-level')}${nested('', '+64K')}${GUESTS}
vcpu 0 in l1 {
  map 0x10000 -> 0x1100000 4K r-- in n
  map 0x1f000 -> 0x110f000 4K in n
  map 0x3ff000 -> 0x11ff000 4K in n
  enter l2 { write 0x800000 = 7 }
}
`.replace('guest l2 in n {', 'guest l2 in n {\n  tables at 0x1000'),
  );
  const exits = logged(made).flatMap(({ kind, object }) => (kind === Kind.NESTED_EXIT ? [object] : []));
  assert.deepEqual(
    exits.map((each) => (typeof each === 'string' ? each : faultSentence(each as FaultInfo))),
    [
      'vCPU 0 in l2 wrote gpa 0x10000: EPT PTE 16 does not allow writing in L1’s tables, so that L1 gets the EPT violation',
    ],
  );
});

test('a store of L1’s to a last-level table makes it unsync; INVEPT gives the root up, and the next entry synchronizes', () => {
  const text = (invept: string): string => `${machine('tdp ept 4-level')}${nested()}${GUESTS}
vcpu 0 in l1 {
  enter l2 { write 0x800000 = 1 }
  write 0x500000 + 0x3000 + 0x10 * 8 = u64(0x1803000 + 0x10 * 8) + 0x100000
  ${invept}
  enter l2 { write 0x800000 = 7 }
}
`;
  const synchronized = holds(text('invept n'));
  assert.equal(synchronized.machine.counter('roots.released'), 1);
  assert.equal(synchronized.machine.counter('tables.reused') > 0, true);
  const at = (made: Run, gpa: number): bigint => made.machine.readEntry(made.machine.resolve(gpa / 4096), 0);
  assert.equal(at(synchronized, 0x1110000), 7n);
  assert.ok(shadowPages(synchronized).every((each) => !each.includes('unsync')));
  // Without it L1 may not count on its change.
  const stale = holds(text(''));
  assert.equal(at(stale, 0x1010000), 7n);
  assert.ok(shadowPages(stale).some((each) => each.includes('level 1') && each.includes('unsync')));
});

test('a store of L1’s to an upper table is emulated: KVM write-protects it in L1’s own tables too', () => {
  const made = holds(`${machine('tdp ept 4-level')}${nested()}${GUESTS}
vcpu 0 in l1 {
  write 0x502000 + 8 * 100 = 0
  enter l2 { read 0x800000 }
  write 0x502000 + 8 * 100 = 0
}
expect emulated == 1
`);
  assert.equal(made.machine.counter('emulated'), 1);
});

test('nested NPT under a host with five levels: the root passes through to L1’s four', () => {
  const made = holds(`${machine('tdp npt 5-level')}${nested()}${GUESTS}
vcpu 0 in l1 {
  enter l2 { write 0x800000 = 7 }
}
expect u64(0x1010000) == 7
`);
  assert.deepEqual(shadowPages(made).slice(0, 2), [
    'level 5, 8-byte, wux, nx !wp, guest_mode, passthrough of gfn 0x1800',
    'level 4, 8-byte, wux, nx !wp, guest_mode of gfn 0x1800',
  ]);
  assert.deepEqual(
    [...made.machine.shadow.writeTracked.entries()].map(([gfn, count]) => [gfn, count]),
    [
      [0x1800, 1],
      [0x1801, 1],
      [0x1802, 1],
    ],
    'the passing root shadows no table',
  );
});

test('a page of guest_mmu goes with the last page that leads to it', () => {
  const made = holds(`${machine('tdp npt 4-level')}${nested()}${GUESTS}
vcpu 0 in l1 {
  enter l2 { write 0x800000 = 7 }
  repeat 3 { write 0x501000 + 8 * 100 = 0 }
}
expect tables.flooded == 1
`);
  assert.deepEqual(shadowPages(made), ['level 4, 8-byte, wux, nx !wp, guest_mode of gfn 0x1800']);
});

test('L2 without a second stage of L1’s has a root of the TDP MMU’s of its own, which L1’s next entry finds again', () => {
  const made = holds(`${machine('tdp ept 4-level')}guest l1 { map 0x400000 -> 0x200000 +64K }
guest l2 {
  tables at 0x1000000
  map 0x800000 -> 0x300000 +64K
}
vcpu 0 in l1 {
  repeat 3 {
    write 0x400000
    enter l2 { write 0x800000 = 7 }
  }
}
expect u64(0x300000) == 7 && roots.built == 2
`);
  const roles = made.machine.roots().map(({ role }) => roleField(role, 'guest_mode'));
  assert.deepEqual(roles.sort(), [0, 1]);
  assert.equal(made.machine.counter('roots.hits'), 5, 'all but the first entry');
});

test('CR0.WP of L2 is nested_mmu’s role alone today; Linux 5.15 gave up every root of L1 and L2', () => {
  const text = (roots: string): string => `machine {
  memory 0 +64M
  second-stage tdp ept 4-level
  policy roots = ${roots}
  sanitize
}
${nested()}${GUESTS}
vcpu 0 in l1 {
  write 0x400000
  enter l2 {
    repeat 10 {
      cr0.wp = 0
      write 0x800000
      cr0.wp = 1
    }
  }
}
`;
  const today = holds(text('today'));
  assert.equal(today.machine.counter('roots.unloads'), 0);
  assert.equal(today.machine.counter('roots.released'), 0);
  const before = holds(text('before'));
  assert.equal(before.machine.counter('roots.unloads'), 20);
  assert.equal(before.machine.counter('roots.released'), 21, 'guest_mmu’s each time, L1’s once');
});

test('large pages of L2 are split at once when dirty logging starts, into direct pages', () => {
  const text = (split: string): string => `machine {
  memory 0 +64M huge 2M
  second-stage tdp ept 4-level
  policy page-split = ${split}
  sanitize
}
nested n {
  tables at 0x1800000
  map 0 -> 0x1000000 +4M
}
${GUESTS}
vcpu 0 in l1 {
  enter l2 { write 0x800000 = 7 }
  wait until slots.generation > 0
  enter l2 { write 0x800000 = 8 }
}
host h {
  wait until nested.exits == 1
  log dirty slot 0 on
}
`;
  const eager = holds(text('eager'));
  const direct = shadowPages(eager).filter((each) => each.includes('direct'));
  assert.deepEqual(direct.length > 0 && direct.every((each) => each.startsWith('level 1')), true, direct.join('\n'));
  const split = logged(eager).filter(
    ({ object }) => (object as { event?: string } | undefined)?.event === 'kvm_mmu_split_huge_page',
  );
  assert.ok(split.length > 1, 'of L1’s tables and of L2’s');
});

const SHAPES: readonly (readonly [string, NestedShape])[] = [
  ['nested EPT', { second: 'tdp ept 4-level', stage: '4-level', statements: 25, host: false }],
  ['nested EPT without A and D', { second: 'tdp ept 4-level', stage: 'no-ad', statements: 25, host: true }],
  ['nested EPT of four levels on five', { second: 'tdp ept 5-level', stage: '4-level', statements: 25, host: true }],
  ['nested EPT of five levels', { second: 'tdp ept 5-level', stage: '5-level', statements: 25, host: true }],
  ['nested NPT', { second: 'tdp npt 4-level', stage: '4-level', statements: 25, host: true }],
  ['nested NPT, passing through', { second: 'tdp npt 5-level', stage: '4-level', statements: 25, host: true }],
  ['L2 without a second stage', { second: 'tdp ept 4-level', statements: 25, host: true }],
  ['L2 without a second stage, shadow paging', { second: 'shadow', statements: 25, host: true }],
];

for (const [name, shape] of SHAPES)
  test(`${name}: random programs break no invariant, and come to an end`, () => {
    let steps = 0;
    for (let seed = 1; seed <= 6 * MORE; seed++) {
      const text = randomNestedProgram(seed, shape);
      const { machine: end } = run(text);
      assert.deepEqual(end.small.failures, [], `seed ${seed}\n${text}`);
      steps += end.steps;
    }
    assert.ok(steps > 1000, `${steps} steps`);
  });

test('tables that L2 edits are L2’s own, wherever L1’s lie; of another root of its own too', () => {
  const made = holds(`${machine('tdp ept 4-level')}${nested('', '+4M 4K')}guest l1 {
  tables at 0x20000
  map 0x400000 -> 0x200000 +64K
}
guest l2 in n {
  tables at 0x20000
  map 0x800000 -> 0x10000 +64K
}
guest other in n {
  tables at 0x40000
  map 0x800000 -> 0x12000 +4K
}
vcpu 0 in l1 {
  enter l2 {
    map 0xa00000 -> 0x11000 4K
    write 0xa00000 = 5
    cr3 = other
    map 0xb00000 -> 0x13000 4K
    write 0xb00000 = 6
  }
}
expect u64(0x1011000) == 5 && u64(0x1013000) == 6 && faults.guest == 0
`);
  assert.equal(made.machine.counter('nested.exits'), 1);
});

test('PDPTEs are L2’s while L2 runs, and L1’s again behind it, with shadow paging', () => {
  holds(`machine {
  memory 0 +64M
  second-stage shadow
  sanitize
}
guest l1 pae {
  map 0x400000 -> 0x200000 4K
}
guest l2 pae {
  tables at 0x100000
  map 0x400000 -> 0x300000 4K
}
vcpu 0 in l1 {
  write 0x400000 = 1
  enter l2 { write 0x400000 = 2 }
  read 0x400000
  expect loaded == 1
}
expect u32(0x300000) == 2
`);
});

test('what L1’s tables refuse an access that KVM emulates is L1’s VM exit too, and nothing is written', () => {
  const made = run(`${machine('tdp ept 4-level')}nested n {
  tables at 0x1800000
  map 0 -> 0x6000000 4K
  map 0x200000 -> 0x1200000 2M
}
guest l1 { map 0x400000 -> 0x200000 +64K }
guest l2 in n {
  tables at 0x280000
  map 0x800000 -> 0 +8K
}
vcpu 0 in l1 {
  enter l2 { write 0x800ffc = 7 }
}
expect nested.exits == 1 && emulated == 1
`);
  assert.deepEqual(made.machine.small.failures, []);
  assert.ok(
    logged(made).every(({ kind }) => kind !== Kind.MMIO),
    'the first page has no memory, and the second no mapping',
  );
});

test('what cannot be is refused by name', () => {
  const failures = (text: string): string[] => run(text).machine.small.failures.map(({ text: words }) => words);
  assert.deepEqual(
    failures(`${machine('tdp npt 4-level')}${nested()}guest l1 pae { map 0x400000 -> 0x200000 4K }
guest l2 in n { map 0x800000 -> 0x10000 4K }
vcpu 0 in l1 { enter l2 { read 0x800000 } }
`),
    ['enter l2: L1 runs with x86, PAE tables, and n is 4-level: its processor would read it otherwise'],
  );
  assert.throws(
    () =>
      run(`${machine('tdp ept 4-level')}nested n { map 0 -> 0 +64M 4K }
guest l1 { map 0x400000 -> 0x200000 4K }
guest l2 in n { map 0x800000 -> 0x10000 4K }
vcpu 0 in l1 { enter l2 { read 0x800000 } }
`),
    /tables of l2 at gpa 0x3fff000 are at L1’s gpa 0x3fff000, among those of n: say tables at/,
  );
  const { diagnostics } = parseScenario(
    `${machine('tdp ept 4-level')}${nested()}${GUESTS}vcpu 0 in l1 { smm { enter l2 { read 0 } } }`,
  );
  assert.match(diagnostics[0]!.message, /enter: in system-management mode VMRUN and VMLAUNCH are #UD/);
});

test('without A and D bits in L1’s EPT L2’s tables are only read, but where bits are set in them', () => {
  const text = (words: string): string => `${machine('tdp ept 4-level')}nested n ${words} {
  tables at 0x1800000
  map 0 -> 0x1000000 +4M 4K
}
guest l1 { map 0x400000 -> 0x200000 +64K }
guest l2 in n {
  tables at 0x20000
  map 0x800000 -> 0x10000 4K accessed
  map 0x801000 -> 0x11000 4K
}
vcpu 0 in l1 {
  enter l2 { read 0x800000 }
  protect 0x20000 +64K r-- in n
  invept n
  enter l2 { read 0x800000 }
  expect nested.exits == NOW
  enter l2 { read 0x801000 }
}
`;
  // With them every reference counts as a write; without, only the one that sets A.
  const exits = (made: Run): number =>
    logged(made).filter(({ kind, object }) => kind === Kind.NESTED_EXIT && typeof object === 'object').length;
  assert.equal(exits(holds(text('').replace('NOW', '2'))), 2);
  assert.equal(exits(holds(text('no-ad').replace('NOW', '2'))), 1);
});
