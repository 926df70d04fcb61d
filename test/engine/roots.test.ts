import assert from 'node:assert/strict';
import { test } from 'node:test';
import { roleField } from '../../engine/kernel/role.ts';
import { answer } from '../../engine/queries/answer.ts';
import { Run } from '../../engine/run.ts';
import { parseScenario } from '../../scenario/index.ts';

// Roots and roles: what each register write does to the cache. Labs hold shadow paging against KVM (test/lab/shadow-agreement.test.ts).

const GUESTS = ['a', 'b', 'c', 'd', 'e'].map(
  (name, index) =>
    `guest ${name} {\n  tables at 0x${(0x800000 + index * 0x10000).toString(16)}\n  map 0x400000 -> 0x200000 4K rw-\n}\n`,
);

/** Runs a vCPU's body; its expectations must hold. */
function holds(body: string, machine = 'memory 0 +64M\n  second-stage shadow\n  sanitize', more = ''): Run {
  const { program, diagnostics } = parseScenario(
    `machine {\n  ${machine}\n}\n${GUESTS.join('')}vcpu 0 in a {\n${body}\n}\n${more}`,
  );
  assert.ok(program, diagnostics.map(({ span, message }) => `${span.line}: ${message}`).join('\n'));
  const run = new Run(program);
  assert.ok(run.runToEnd(200_000), 'still running');
  assert.deepEqual(run.machine.small.failures, []);
  return run;
}

/** CR3 of the current root and of those before it, in units of the guests' tables: `a`, `b` …, `-` for none. */
function kept({ machine }: Run): string {
  const { root, prevRoots } = machine.vcpu(0).mmu;
  return [root, ...prevRoots]
    .map(({ pfn, pgd }) => (pfn < 0 ? '-' : 'abcde'[Number((pgd - 0x800000n) / 0x10000n)]!))
    .join('');
}

/** The same with PCIDs, without the places that are empty: `c3 b2`. */
function keptPcids({ machine }: Run): string {
  const { root, prevRoots } = machine.vcpu(0).mmu;
  return [root, ...prevRoots]
    .filter(({ pfn }) => pfn >= 0)
    .map(({ pgd }) => `${'abcde'[Number((pgd - 0x800000n) / 0x10000n)]}${pgd & 0xfffn}`)
    .join(' ');
}

const TDP = 'memory 0 +64M\n  sanitize';

test('the current root and three before it are kept, the last used first; a fifth takes the place of the oldest', () => {
  assert.equal(
    kept(holds('read 0x400000\ncr3 = b\nread 0x400000\ncr3 = c\nread 0x400000\ncr3 = d\nread 0x400000')),
    'dcba',
  );
  const five = holds(['b', 'c', 'd', 'e'].map((name) => `read 0x400000\ncr3 = ${name}`).join('\n'));
  assert.equal(kept(five), 'edcb');
  assert.equal(five.machine.counter('roots.released'), 1);
  // Back to the oldest that is kept: the others move on, and nothing is built.
  const back = holds(
    `${['b', 'c', 'd'].map((name) => `read 0x400000\ncr3 = ${name}`).join('\n')}\nread 0x400000\ncr3 = a`,
  );
  assert.equal(kept(back), 'adcb');
  assert.equal(back.machine.counter('roots.hits'), 1);
  assert.equal(back.machine.counter('roots.released'), 0);
});

test('with the TDP MMU a write to CR3 is the guest’s own affair', () => {
  const run = holds('read 0x400000\ncr3 = b\nread 0x400000\nexpect roots.misses == 0', TDP);
  assert.equal(run.machine.counter('roots.built'), 1);
});

test('NOFLUSH keeps what the TLB has of the address space; without it there is nothing left', () => {
  const body = (bit: string): string =>
    `cr4.pcide = 1\ncr3 = a + 1\nread 0x400000\ncr3 = b + 2\ncr3 = (a + 1)${bit}\nread 0x400000`;
  const misses = (text: string): number => holds(text, TDP).machine.counter('tlb.misses');
  assert.equal(misses(body('')), misses(body(' | (1 << 63)')) + 1);
});

test('INVPCID of a PCID gives up the previous roots of it, and of no other', () => {
  const three = 'cr4.pcide = 1\ncr3 = a + 1\nread 0x400000\ncr3 = b + 2\nread 0x400000\ncr3 = c + 3\nread 0x400000';
  // The root that was loaded before there were PCIDs is of PCID 0.
  assert.equal(keptPcids(holds(`${three}\ninvpcid 1, 2`)), 'c3 a1 a0');
  assert.equal(keptPcids(holds(`${three}\ninvpcid 1, 1`)), 'c3 b2 a0');
  // Types 2 and 3 synchronize; roots below which nothing is unsync stay.
  assert.equal(keptPcids(holds(`${three}\ninvpcid 2`)), 'c3 b2 a1 a0');
});

test('setting CR4.PCIDE gives up every root of shadow paging, clearing it flushes', () => {
  holds('read 0x400000\ncr3 = b\nread 0x400000\ncr4.pcide = 1\nexpect roots.unloads == 1\nexpect roots.released == 2');
  holds('cr4.pcide = 1\nread 0x400000\ncr4.pcide = 0\nexpect roots.unloads == 0', TDP);
});

for (const [roots, unloads] of [
  ['today', [0, 1, 1, 0, 1]],
  ['posted', [0, 0, 0, 0, 1]],
  ['before', [1, 1, 1, 1, 1]],
] as const)
  test(`roots = ${roots}: which changes of the guest's mode unload the TDP MMU's roots`, () => {
    const changes = ['cr0.wp = 0', 'cr4.smep = 1', 'efer.nxe = 0', 'cr4.pge = 0', 'cr0.pg = 0'];
    const counted = changes.map((change) =>
      holds(`read 0x400000\n${change}`, `${TDP}\n  policy roots = ${roots}`).machine.counter('roots.unloads'),
    );
    assert.deepEqual(counted, unloads);
  });

test('the role of the TDP MMU’s root depends on nothing that the guest does, but in 2022', () => {
  const roles = (roots: string): number =>
    new Set(
      ['', 'cr0.wp = 0', 'cr4.smep = 1', 'efer.nxe = 0'].map(
        (change) => holds(`${change}\nread 0x400000`, `${TDP}\n  policy roots = ${roots}`).machine.vcpu(0).mmu.rootRole,
      ),
    ).size;
  assert.equal(roles('today'), 1);
  assert.equal(roles('posted'), 3);
  assert.equal(roles('before'), 3);
});

test('with EPT CR0.WP is the guest’s own; with NPT it exits, and changes the CPU’s role alone', () => {
  const toggle = (second: string, roots = 'today'): Run =>
    holds(
      'read 0x400000\ncr0.wp = 0',
      `memory 0 +64M\n  second-stage tdp ${second} 4-level\n  policy roots = ${roots}`,
    );
  const exits = (run: Run): number => run.machine.counter('exits');
  const wp = ({ machine }: Run): number => roleField(machine.vcpu(0).mmu.cpuRole.base, 'cr0_wp');
  const [ept, npt] = [toggle('ept'), toggle('npt')];
  assert.equal(exits(npt), exits(ept) + 1);
  assert.equal(
    npt.machine.counter('entries'),
    ept.machine.counter('entries') + 1,
    'and comes back, though nothing is to do',
  );
  // KVM looks when it walks the guest's tables next.
  assert.deepEqual([wp(ept), wp(npt)], [1, 0]);
  assert.equal(exits(toggle('ept', 'posted')), exits(npt));
  const emulated = holds(
    'map 0x500000 -> 0x10000000 4K rw-\nread 0x400000\ncr0.wp = 0\nread 0x500000',
    'memory 0 +64M\n  second-stage tdp ept 4-level',
  );
  assert.equal(wp(emulated), 0);
});

test('as the series was posted, CR4.PCIDE unloads whatever MMU it is, and SMEP flushes', () => {
  const POSTED = '\n  policy roots = posted';
  holds('cr4.pcide = 1\ncr4.pcide = 0\nexpect roots.unloads == 2', `${TDP}${POSTED}`);
  holds('read 0x400000\ncr4.pge = 0\nexpect roots.unloads == 0', `${TDP}${POSTED}`);
});

test('a 64-bit L1 that runs a 32-bit guest: L1’s root waits in the cache, but in Linux 5.15, which goes by the levels that were', () => {
  const counted = (roots: string): number[] => {
    const { program } = parseScenario(`machine {
  memory 0 +64M
  second-stage shadow
  policy roots = ${roots}
  sanitize
}
guest long {
  map 0x400000 -> 0x200000 +64K rw-
}
guest small 32-bit {
  map 0x400000 -> 0x300000 +64K rw-
}
vcpu 0 in long {
  write 0x400000
  repeat 5 {
    enter small { write 0x400000 }
    write 0x400000
  }
}
`);
    const run = new Run(program!);
    assert.ok(run.runToEnd(100_000));
    assert.deepEqual(run.machine.small.failures, []);
    return (['roots.hits', 'roots.misses', 'roots.released'] as const).map((name) => run.machine.counter(name));
  };
  const [hits, ...today] = counted('today');
  assert.equal(hits, 5, 'each time that L1 comes back');
  assert.deepEqual(counted('posted'), [hits, ...today]);
  // Going in it looks, and finds nothing; coming out it does not look.
  assert.deepEqual(counted('before').slice(0, 2), [0, 5]);
});

test('the register write, the instruction or the request behind a change of roots is told', () => {
  const run = holds(
    'cr4.pcide = 1\ncr3 = a + 1\nread 0x400000\ncr3 = b + 2\nread 0x400000\ninvpcid 1, 1\nwait until tables.zapped > 0\nread 0x400000',
    'memory 0 +64M\n  second-stage shadow',
    'host h {\n  wait until accesses == 2 && roots.released >= 1\n  zap all\n}\n',
  );
  const { answer: found } = answer(run.machine, { kind: 'root-cache' }, { since: 0, fault: undefined });
  assert.ok(found.kind === 'root-cache');
  const causes = found.moments.map(({ cause }) => cause ?? '');
  assert.ok(causes.includes('invpcid 1, PCID 1'), causes.join('\n'));
  assert.equal(causes.at(-1), 'KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, which h asked for');
  assert.equal(
    causes.filter((cause) => cause.startsWith('cr3')).length,
    4,
    'two writes, each with the root that it leads to',
  );
});

test('what the processor refuses of a register write is told, and nothing has changed', () => {
  const refused = (body: string, guest = ''): string => {
    const { program } = parseScenario(
      `machine { memory 0 +64M second-stage shadow }\nguest a { tables at 0x800000 }\nguest p pae { tables at 0x900000\n map 0x400000 -> 0x200000 4K rw-\n ${guest}}\nvcpu 0 in ${guest === '' ? 'a' : 'p'} {\n${body}\n}\n`,
    );
    const run = new Run(program!);
    run.runToEnd(10_000);
    return run.machine.small.failures.map(({ text }) => text).join();
  };
  assert.match(refused('cr3 = a + 5\ncr4.pcide = 1'), /cr4.pcide cannot be set while cr3 0x800005 has bits 11:0/);
  assert.match(refused('cr4.pcide = 1\ncr0.pg = 0'), /cr4.pcide needs cr0.pg/);
  assert.match(
    refused('cr3 = p', 'entry 0x40000000 level 3 = 0x107'),
    /cr3 0x900000: PDPTE 1 at gpa 0x900008 is 0x107, of which 0x106 is reserved: #GP/,
  );
});

test('a CR3 that leads to no memory gets the dummy root: every access faults', () => {
  const run = holds('cr3 = 0x4000000000\nread 0x400000\nexpect faults.guest == 1');
  assert.equal(run.machine.vcpu(0).root, run.machine.dummyRoot());
});

test('too many shadow pages: the oldest go, and what they mapped faults again', () => {
  // 1.6M of memory: no fewer than 64 pages; a table of its own for each 2M of addresses.
  const run = holds(
    `repeat 120 as i {\n  map 0x40000000 -> 0x200000 4K rw-\n  read 0x400000\n}\n${Array.from(
      { length: 100 },
      (_, index) =>
        `map 0x${(0x40000000 + index * 0x200000).toString(16)} -> 0x200000 4K rw-\nread 0x${(0x40000000 + index * 0x200000).toString(16)}`,
    ).join('\n')}\nexpect tables.recycled > 0`,
    'memory 0 +12M\n  second-stage shadow\n  sanitize',
  );
  assert.ok([...run.machine.pages.values()].length <= 82);
});

test('system-management mode has a root of its own: smm is in the role', () => {
  const machine = 'memory 0 +64M\n  second-stage tdp ept 4-level\n  sanitize';
  const body =
    '  write 0x400000 = 1\n  smm {\n    write 0x5000 = 2\n    expect u64(0x5000) == 2\n  }\n  write 0x400000 = 3\n';
  const today = holds(body, machine);
  assert.equal(today.machine.counter('roots.unloads'), 2);
  assert.deepEqual(
    today.machine.roots().map(({ role }) => roleField(role, 'smm')),
    [0, 1],
  );
  // As posted nothing is given up: the way back finds the root again.
  const posted = holds(body, `${machine}\n  policy roots = posted`);
  assert.equal(posted.machine.counter('roots.unloads'), 0);
  assert.equal(posted.machine.counter('roots.hits'), 1);
});
