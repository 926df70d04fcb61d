import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type CONVERSION_INJECTIONS, INJECTIONS, type Injection } from '../../engine/injections.ts';
import { Run } from '../../engine/run.ts';
import { sanitize } from '../../engine/shadow/sanitizer.ts';
import { parseScenario } from '../../scenario/index.ts';
import { randomProgram } from '../lab/programs.ts';

// Each mistake that KVM can be made to make is caught, by the sanitizer or by an expectation; without it the same scenario is well.

interface Case {
  readonly machine?: string;
  /** Guests and tasks; `INJECT` is where the mistake begins. */
  readonly text: string;
  readonly caught: RegExp;
}

const SHADOW = 'memory 0 +64M\n  second-stage shadow\n  sanitize';
const KERNEL = 'guest k {\n  map 0x400000 -> 0x200000 +64K rwx user\n}\n';
/** b's table is a's data: an entry of it is written while b's root is a previous one, whose page is unsync; `flush` must have it looked at. */
const staleRoot = (toB: string, toA: string, flush: string): string =>
  `guest a {
  tables at 0x800000
  map 0x400000 -> 0x810000 +64K rw-
}
guest b {
  tables at 0x810000
  map 0x400000 -> 0x300000 +64K rw-
}
vcpu 0 in a {
  INJECT
  write 0x403ff8 = 0
  ${toB}
  write 0x400000 = 77
  write 0x401000 = 88
  ${toA}
  write 0x403000 = 0x301063
  ${flush}
  read 0x400000
  expect loaded == 88
}
`.replaceAll('NOFLUSH', '(1 << 63)');
const HALVES = `guest k 32-bit {
  map 0xc28f2000 -> 0x028f2000 4K rw- supervisor
  map 0xc2af2000 -> 0x02af2000 4K rw- supervisor
}
vcpu 0 in k {
  INJECT
  read 0xc2af2000
  read 0xc28f2000
}
`;

// Those of conversions are explored: explore.test.ts. An entry in use is no mistake: rmp.test.ts.
const CASES: Readonly<Record<Exclude<Injection, keyof typeof CONVERSION_INJECTIONS | 'rmp-in-use'>, Case>> = {
  'quadrant-copied': {
    text: HALVES,
    caught:
      /sanitizer: entry 21 of the shadow page of gfn 0x\w+ \(level 2, 4-byte q3.*leads to quadrant 3 of the guest's table at gfn 0x\w+, not 1/,
  },
  'quadrant-wrong-bit': {
    text: HALVES,
    caught: /sanitizer: entry 21 of .* leads to quadrant 0 of the guest's table at gfn 0x\w+, not 1/,
  },
  'child-by-gfn': {
    // A device writes to the guest's page directory, of which KVM knows nothing; then the guest flushes.
    text: `guest k {
  tables at 0x800000
  map 0x400000 -> 0x200000 +16K rw-
}
vcpu 0 in k {
  INJECT
  write 0x400000
  wait until (u64(0x802010) & 2) == 0
  cr3 = k
  read 0x401000
  write 0x400000
}
host device {
  wait until accesses == 1
  write 0x802010 = u64(0x802010) & 0xffff_ffff_ffff_fffd
}
expect faults.guest == 1
`,
    caught: /expect faults\.guest == 1: left is 0, right is 1/,
  },
  'unprotected-table': {
    text: `guest k {
  tables at 0x100000
  map 0x400000 -> 0x200000 +16K rw-
  map 0x800000 -> 0x100000 +64K rw-
}
vcpu 0 in k {
  write 0x803ff8 = 0
  INJECT
  read 0x400000
  write 0x804ff8 = 0
}
`,
    caught:
      /sanitizer: entry \d+ of the shadow page of gfn 0x\w+ .* maps gfn 0x\w+ writable, where a table of the guest's is shadowed/,
  },
  'unflushed-protection': {
    text: `guest k {
  tables at 0x100000
  map 0x800000 -> 0x100000 +64K rw-
  map 0x400000 -> 0x200000 +16K rw-
}
vcpu 0 in k {
  write 0x803ff8 = 0
  write 0x804ff8 = 0
  write 0x805ff8 = 0
  INJECT
  read 0x400000
}
`,
    caught: /sanitizer: vCPU 0 has gva 0x80\w000 in its TLB writable, which no shadow page maps so any more/,
  },
  'unsync-late': {
    text: `guest k {
  tables at 0x100000
  map 0x800000 -> 0x100000 +64K rw-
  map 0x400000 -> 0x200000 +16K rw-
}
vcpu 0 in k {
  read 0x400000
  INJECT
  write 0x803ff8 = 0
}
`,
    caught: /sanitizer: entry \d+ of .* maps gfn 0x103 writable, where a table of the guest's is shadowed/,
  },
  'unflushed-free': {
    text: `${KERNEL}vcpu 0 in k {
  write 0x400000
  wait until tables.zapped > 0
}
host h {
  wait until faults.fixed > 0
  INJECT
  zap all
}
`,
    caught: /sanitizer: vCPU 0 has gva 0x400000 in its TLB, which no shadow page maps any more/,
  },
  'root-leak': {
    text: `${KERNEL}vcpu 0 in k {
  read 0x400000
  INJECT
  cr0.wp = 0
  read 0x400000
}
`,
    caught: /sanitizer: the root at host frame 0x\w+ \(level 4.*\) counts 1 references, but has 0/,
  },
  'root-wrong-role': {
    machine: 'memory 0 +64M\n  second-stage shadow\n  policy roots = posted\n  sanitize',
    text: `${KERNEL}vcpu 0 in k {
  read 0x400000
  INJECT
  cr0.wp = 0
  read 0x400000
}
`,
    caught:
      /sanitizer: vCPU 0 runs on a root of role level 4, 8-byte, wux, nx wp, but its MMU wants level 4, 8-byte, wux, nx !wp/,
  },
  'previous-roots-kept': {
    // The entry of b's table is written while b's root is a previous one; the flush of its PCID comes before b is used again.
    text: staleRoot(
      'cr4.pcide = 1\n  cr3 = a + 1\n  write 0x403ff8 = 0\n  cr3 = b + 2',
      'cr3 = (a + 1) | NOFLUSH',
      'invpcid 1, 2\n  cr3 = (b + 2) | NOFLUSH',
    ),
    caught: /expect loaded == 88: left is 77, right is 88/,
  },
  'wp-unloads': {
    machine: 'memory 0 +64M\n  sanitize',
    text: `${KERNEL}vcpu 0 in k {
  read 0x400000
  INJECT
  cr0.wp = 0
  read 0x400000
}
expect roots.unloads == 0
`,
    caught: /expect roots\.unloads == 0: left is 1, right is 0/,
  },
  'roles-kept': {
    // Bit 38 of the entry is an address bit at first, and reserved behind the change.
    machine: 'memory 0 +64M\n  memory 0x4000000000 +4K\n  second-stage shadow\n  sanitize',
    text: `guest k {
  map 0x400000 -> 0x4000000000 4K rw-
  map 0x600000 -> 0x4000000000 4K rw-
}
vcpu 0 in k {
  write 0x400000
  wait until slots.generation > 2
  read 0x600000
  expect faults.guest == 1
}
host h {
  wait until accesses > 0
  INJECT
  cpuid maxphyaddr 36
  add slot 5 at 0x8000000 +4K
}
`,
    caught: /expect faults\.guest == 1: left is 0, right is 1/,
  },
  'mmio-generation': {
    machine: 'memory 0 +64M\n  sanitize',
    text: `guest k {
  map 0x400000 -> 0x8000000 4K rw-
}
vcpu 0 in k {
  read 0x400000
  wait until slots.generation > 1
  write 0x400000 = 7
  expect emulated == 1
}
host h {
  INJECT
  wait until emulated > 0
  add slot 7 at 0x8000000 +4K
}
`,
    caught: /expect emulated == 1: left is 2, right is 1/,
  },
  'ad-bits-lost': {
    text: `${KERNEL}vcpu 0 in k {
  INJECT
  write 0x400000
  expect (pte(0x400000) & 0x60) == 0x60
}
`,
    caught: /sanitizer: entry 0 of the shadow page of gfn 0x\w+ .* is writable, but D is not set in the guest's entry/,
  },
  'ad-bits-wrong-entry': {
    text: `${KERNEL}vcpu 0 in k {
  INJECT
  write 0x400000
  expect (pte(0x400000) & 0x60) == 0x60
}
`,
    caught: /sanitizer: entry 0 of the shadow page of gfn 0x\w+ .* is writable, but D is not set in the guest's entry/,
  },
  'error-with-fetch': {
    text: `guest k {
  map 0x400000 -> 0x200000 4K rwx
}
vcpu 0 in k {
  efer.nxe = 0
  INJECT
  fetch 0x800000
  expect error_code == 0
}
`,
    caught: /expect error_code == 0: left is 16, right is 0/,
  },
  'error-without-present': {
    text: `guest k {
  map 0x400000 -> 0x200000 4K r--
}
vcpu 0 in k {
  INJECT
  write 0x400000
  expect error_code == 3
}
`,
    caught: /expect error_code == 3: left is 2, right is 3/,
  },
  'nx-huge-executable': {
    machine: 'memory 0 +64M huge 2M\n  policy nx-huge-pages = on\n  sanitize',
    text: `guest k {
  map 0x400000 -> 0x400000 2M
}
vcpu 0 in k {
  INJECT
  read 0x400000
}
`,
    caught: /sanitizer: entry \d+ of the table at host frame 0x\w+ maps an executable page of level 2/,
  },
  'nx-splits-leak': {
    machine: 'memory 0 +64M huge 2M\n  policy nx-huge-pages = on\n  sanitize',
    text: `guest k {
  map 0x400000 -> 0x400000 2M
}
vcpu 0 in k {
  fetch 0x400000
}
host h {
  wait until nx_lpage_splits == 1
  INJECT
  recover-nx-huge-pages
}
`,
    caught: /sanitizer: nx_lpage_splits is 1, but possible_nx_huge_pages has 0 tables/,
  },
  'smap-ac-implicit': {
    machine: 'memory 0 +64M\n  sanitize',
    text: `${KERNEL}vcpu 0 in k {
  cr4.smap = 1
  rflags.ac = 1
  INJECT
  implicit read 0x400000
}
expect faults.guest == 1
`,
    caught: /expect faults\.guest == 1: left is 0, right is 1/,
  },
};

/** What is wrong when a scenario has run to its end, with where: `line N, step N: TEXT: ACTUAL`. */
function failuresOf({ machine = SHADOW, text }: Case, inject: string): string[] {
  const { program, diagnostics } = parseScenario(
    `machine {\n  ${machine}\n}\n${text.replace('INJECT', inject === '' ? '' : `inject ${inject}`)}`,
  );
  assert.ok(program, diagnostics.map(({ span, message }) => `${span.line}: ${message}`).join('\n'));
  const run = new Run(program);
  assert.ok(run.runToEnd(100_000), 'still running');
  return run.machine.small.failures.map(({ text: what, actual, line }) => `line ${line}: ${what}: ${actual}`);
}

for (const [name, one] of Object.entries(CASES) as [keyof typeof CASES, Case][])
  test(`${name}: ${INJECTIONS[name]}`, () => {
    assert.deepEqual(failuresOf(one, ''), [], 'without the mistake all is well');
    const failures = failuresOf(one, name);
    assert.ok(failures.length > 0, 'nothing has caught it');
    assert.match(failures[0]!, one.caught);
    assert.match(failures[0]!, /^line \d+: /, 'the place is named');
  });

test('previous-roots-kept: setting CR4.PCIDE leaves them too', () => {
  const one = {
    text: staleRoot('cr3 = b', 'cr3 = a', 'cr4.pcide = 1\n  cr3 = b | NOFLUSH'),
    caught: /expect loaded == 88/,
  };
  assert.deepEqual(failuresOf(one, ''), []);
  assert.match(failuresOf(one, 'previous-roots-kept')[0]!, one.caught);
});

test('after every step of random programs all invariants hold', () => {
  const runs = Math.ceil(Number(process.env.FUZZ_RUNS ?? 2000) / 250);
  for (let seed = 1; seed <= runs; seed++)
    for (const shape of [
      { host: false, guest: true },
      { host: true, guest: true },
      { host: true, guest: true, spaces: 5 },
      { host: true, guest: true, paging: '32-bit' as const },
      { host: true, guest: true, spaces: 3, paging: 'pae' as const },
      { host: true, guest: true, paging: '5-level' as const },
    ]) {
      const { program } = parseScenario(randomProgram(seed, { second: 'shadow', statements: 40, ...shape }));
      const run = new Run(program!);
      for (let task = run.pick(); task; task = run.pick()) {
        run.step(task);
        assert.deepEqual(
          sanitize(run.machine),
          [],
          `seed ${seed}, ${JSON.stringify(shape)}, step ${run.machine.steps}`,
        );
      }
    }
});
