import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LEAF } from '../../engine/formats/compile.ts';
import type { Machine } from '../../engine/machine.ts';
import type { Task } from '../../engine/operation.ts';
import { choosePolicy, DEFAULT_POLICIES } from '../../engine/policies.ts';
import { answer } from '../../engine/queries/answer.ts';
import { comparePolicies } from '../../engine/queries/comparison.ts';
import { Run } from '../../engine/run.ts';
import { findEntry } from '../../engine/tdp/iterate.ts';
import { isMmio, isPresent, spteFormat } from '../../engine/tdp/spte.ts';
import { parseScenario } from '../../scenario/index.ts';
import { randomProgram } from '../lab/programs.ts';
import { randomNestedProgram } from './nested-programs.ts';

// Second-stage tables without the TDP MMU: direct shadow pages, as Linux has them with tdp_mmu=N.

const MOMENT = { since: 0, fault: undefined };
const STAGES = ['tdp ept 4-level', 'tdp npt 5-level'];

function start(text: string): Run {
  const { program, diagnostics } = parseScenario(text);
  assert.ok(program, diagnostics.map(({ message, span }) => `${span.line}: ${message}`).join('\n'));
  return new Run(program);
}

/** Runs to the end; every expectation must hold. */
function holds(text: string): Machine {
  const run = start(text);
  assert.equal(run.runToEnd(400_000), true, 'still running');
  assert.equal(run.stuck(), undefined);
  assert.deepEqual(run.machine.small.failures, [], text);
  assert.deepEqual(run.machine.small.warnings, [], text);
  return run.machine;
}

const machineOf = (second: string, tdpMmu: 'on' | 'off', more = ''): string =>
  `machine x86-64 {\n  memory 0 +64M huge 2M\n  second-stage ${second}\n  policy tdp-mmu = ${tdpMmu}\n  sanitize\n${more}}\n`;
const GUEST = 'guest g {\n  map 0x400000 -> 0x400000 +16M rwx\n}\n';

/** The leaf of KVM's tables for a gpa, as `level 2 rw-`. */
function leaf(machine: Machine, gpa: number): string {
  const format = machine.secondFormat;
  const { level, lo, hi } = findEntry(machine, machine.vcpu(0).root, gpa / 4096);
  if (isMmio(spteFormat(format), lo, hi)) return 'marker';
  if (!isPresent(lo) || format.classify(level, lo) !== LEAF) return 'none';
  const access = format.access(level, lo, hi);
  return `level ${level} r${access & 2 ? 'w' : '-'}${access & 1 ? 'x' : '-'}`;
}

// ---- toggles of CR0.WP (Linux 5.15 gives up all roots at each)

const TOGGLES = 40;
const toggling = (second: string, roots: string, tdpMmu: 'on' | 'off'): string =>
  `${machineOf(second, tdpMmu, `  policy roots = ${roots}\n`)}guest k {\n  map 0x400000 -> 0x400000 +16K r-x\n}\nvcpu 0 in k {\n  read 0x400000\n  repeat ${TOGGLES / 2} {\n    cr0.wp = 0\n    write 0x400000\n    cr0.wp = 1\n    read 0x400000\n  }\n}\n`;

for (const second of STAGES) {
  test(`${second}: in Linux 5.15 a toggle of CR0.WP has the TDP MMU build all tables anew; without it they are found in the hash`, () => {
    const [on, off] = (['on', 'off'] as const).map((tdpMmu) => holds(toggling(second, 'before', tdpMmu)));
    for (const machine of [on!, off!]) assert.equal(machine.counter('roots.unloads'), TOGGLES);
    assert.ok(on!.counter('roots.built') >= TOGGLES);
    assert.ok(on!.counter('tables.built') >= 2 * TOGGLES);
    assert.ok(on!.counter('faults.second') >= 2 * TOGGLES);
    // One root of each role, with CR0.WP and without.
    assert.equal(off!.counter('roots.built'), 2);
    assert.equal(off!.counter('roots.freed'), 0);
    assert.equal(off!.counter('tables.reused'), TOGGLES - 1);
    // Each with the pages of its levels, which no toggle after the second adds to.
    assert.equal(off!.counter('tables.built'), off!.pages.size);
    assert.ok(off!.counter('faults.second') < 10);
    assert.ok(off!.steps < on!.steps / 2, `${off!.steps} steps, with the TDP MMU ${on!.steps}`);
  });

  test(`${second}: today a toggle of CR0.WP costs neither anything`, () => {
    for (const tdpMmu of ['on', 'off'] as const) {
      const machine = holds(toggling(second, 'today', tdpMmu));
      assert.equal(machine.counter('roots.unloads'), 0);
      assert.equal(machine.counter('roots.built'), 1);
      assert.ok(machine.counter('faults.second') < 8);
    }
  });

  test(`${second}: as the series was posted, the two roots of a toggle change places in the cache`, () => {
    const machine = holds(toggling(second, 'posted', 'off'));
    assert.equal(machine.counter('roots.built'), 2);
    assert.equal(machine.counter('roots.hits'), TOGGLES - 1);
  });
}

test('compare tells the same: the work of each toggle, and roots of which the TDP MMU keeps none', () => {
  const { program } = parseScenario(toggling('tdp ept 4-level', 'before', 'on'));
  const { answer: compared } = comparePolicies(program!, 'tdp-mmu', ['on', 'off'], 100_000);
  const row = (name: string) => compared.rows.find((each) => each.name === name)?.values;
  assert.deepEqual(row('roots.built'), [TOGGLES + 1, 2]);
  assert.deepEqual(row('roots.freed'), [TOGGLES, 0]);
  assert.deepEqual(row('tables.reused'), [0, TOGGLES - 1]);
});

test('tables that no vCPU has any more go with the next memslot change', () => {
  const text = `${toggling('tdp npt 4-level', 'before', 'off')}host h {\n  wait until roots.unloads == ${TOGGLES}\n  zap all\n}\n`;
  const machine = holds(text);
  assert.deepEqual(
    machine.directRoots().map(({ rootCount, invalid }) => [rootCount, invalid]),
    [[1, true]],
    'the vCPU’s own stays until it lets it go',
  );
});

// ---- faults

for (const second of STAGES) {
  const off = machineOf(second, 'off');

  test(`${second}: a fault maps its page and, of neighbours that the host has, those up to the next multiple of 8`, () => {
    const machine = holds(
      `${off.replace(' huge 2M', '')}${GUEST}vcpu 0 in g {\n  write 0x402000\n}\nexpect faults.fixed == 2\n`,
    );
    assert.equal(leaf(machine, 0x402000), 'level 1 rwx');
    assert.equal(leaf(machine, 0x407000), 'level 1 rwx');
    assert.equal(leaf(machine, 0x408000), 'none');
    assert.ok([...machine.pages.values()].every(({ shadow }) => shadow));
    assert.equal(machine.counter('tables.built'), machine.pages.size);
  });

  test(`${second}: a page that the host has unmapped is no neighbour, nor is what comes after it`, () => {
    const machine = holds(
      `${off.replace(' huge 2M', '')}${GUEST}vcpu 0 in g {\n  wait until slots.generation > 1\n  write 0x400000\n}\nhost h {\n  unmap 0x403000 +4K\n  add slot 7 at 0x8_0000_0000 +4K\n}\n`,
    );
    assert.equal(leaf(machine, 0x402000), 'level 1 rwx');
    assert.equal(leaf(machine, 0x403000), 'none');
    assert.equal(leaf(machine, 0x404000), 'none');
  });

  test(`${second}: large pages are mapped where slot and host have them`, () => {
    const machine = holds(`${off}${GUEST}vcpu 0 in g {\n  write 0x401000\n  read 0x500000\n}\n`);
    assert.equal(leaf(machine, 0x401000), 'level 2 rwx');
    assert.ok(![...machine.pages.values()].some(({ level, gfn }) => level === 1 && gfn === 0x400));
  });

  test(`${second}: dirty logging splits a large page at the write, whatever eager splitting says, and zaps small ones at its end`, () => {
    const log = (more: string): Machine =>
      holds(
        `${off}${GUEST}vcpu 0 in g {\n  write 0x401000\n  wait until slots.generation > 1\n${more}}\nhost h {\n  wait until faults.fixed >= 2\n  log dirty slot 0 on\n}\n`,
      );
    assert.equal(leaf(log(''), 0x401000), 'level 2 r-x');
    const written = log('  write 0x402000\n');
    assert.equal(leaf(written, 0x402000), 'level 1 rwx');
    assert.equal(leaf(written, 0x401000), 'none');
    const ended = holds(
      `${off}${GUEST}vcpu 0 in g {\n  write 0x401000\n  wait until slots.generation > 1\n  write 0x402000\n  wait until slots.generation > 2\n  read 0x402000\n}\nhost h {\n  wait until faults.fixed >= 2\n  log dirty slot 0 on\n  wait until accesses >= 2\n  log dirty slot 0 off\n}\n`,
    );
    assert.equal(leaf(ended, 0x402000), 'level 2 rwx');
  });

  test(`${second}: a write to a page that the dirty log protects is let through without a lock`, () => {
    const machine = holds(
      `${off.replace(' huge 2M', '')}${GUEST}vcpu 0 in g {\n  write 0x400000\n  wait until slots.generation > 1\n  write 0x400000\n}\nhost h {\n  wait until faults.fixed >= 2\n  log dirty slot 0 on\n}\nexpect faults.fast >= 1\n`,
    );
    assert.equal(leaf(machine, 0x400000), 'level 1 rwx');
    assert.equal(leaf(machine, 0x401000), 'level 1 r-x');
  });

  /** Pages that are writable after some were written, and others read, while the slot was logged. */
  const logged = (tdpMmu: 'on' | 'off', memory: string): number[] => {
    const head = machineOf(second, tdpMmu).replace(' huge 2M', memory);
    const machine = holds(
      `${head}${GUEST}vcpu 0 in g {\n  repeat 64 as i { write 0x400000 + i * 4K }\n  wait until slots.generation > 1\n  repeat 7 as i { write 0x402000 + i * 0x9000 }\n  repeat 9 as i { read 0x400000 + i * 0x3000 }\n}\nhost h {\n  wait until accesses >= 64\n  log dirty slot 0 on\n}\n`,
    );
    return Array.from({ length: 64 }, (_, page) => page).filter((page) =>
      /^level 1 rw/.test(leaf(machine, 0x400000 + page * 4096)),
    );
  };
  const written = [2, 11, 20, 29, 38, 47, 56];

  test(`${second}: the dirty log names the pages that it names with the TDP MMU`, () => {
    assert.deepEqual(logged('on', ''), written);
    assert.deepEqual(logged('off', ''), written);
  });

  test(`${second}: of a large page that a write has split it names what is only read, too: the pieces are not there, and come back writable`, () => {
    assert.deepEqual(logged('on', ' huge 2M'), written);
    const read = [0, 3, 6, 9, 12, 15, 18, 21, 24];
    assert.deepEqual(
      logged('off', ' huge 2M'),
      [...new Set([...written, ...read])].sort((a, b) => a - b),
    );
  });

  test(`${second}: what no slot has becomes a marker, which a change of slots makes stale`, () => {
    const text = (tdpMmu: 'on' | 'off'): string =>
      `${machineOf(second, tdpMmu)}guest g {\n  map 0x400000 -> 0x9000_0000 +8K rw-\n}\nvcpu 0 in g {\n  read 0x400000\n  write 0x401000 = 1\n  read 0x400000\n  wait until slots.generation > 1\n  read 0x400000\n}\nhost h {\n  wait until accesses >= 3\n  add slot 7 at 0x8_0000_0000 +4K\n}\n`;
    const [on, legacy] = (['on', 'off'] as const).map((tdpMmu) => holds(text(tdpMmu)));
    assert.equal(leaf(legacy!, 0x9000_0000), 'marker');
    assert.equal(leaf(legacy!, 0x9000_1000), 'marker');
    for (const counter of ['faults.mmio', 'emulated'] as const)
      assert.equal(legacy!.counter(counter), on!.counter(counter));
  });

  test(`${second}: a read-only slot is read, and writes to it are emulated`, () => {
    holds(
      `${off.replace('  second', '  memory 0x8000_0000 +64K read-only slot 5\n  second')}guest g {\n  map 0x400000 -> 0x8000_0000 +64K rw-\n}\nvcpu 0 in g {\n  read 0x400000\n  write 0x400000 = 3\n}\nexpect faults.read_only == 1\nexpect u64(0x8000_0000) == 0\n`,
    );
  });

  test(`${second}: two vCPUs share the pages, and each has a reference to the root`, () => {
    const machine = holds(
      `${off}${GUEST}vcpu 0 in g {\n  write 0x400000\n}\nvcpu 1 in g {\n  write 0x600000\n}\nexpect roots.built == 1\n`,
    );
    assert.deepEqual(
      machine.directRoots().map(({ rootCount }) => rootCount),
      [2],
    );
  });

  test(`${second}: where the limit of shadow pages is reached the oldest go, and what they mapped faults again`, () => {
    const slots = Array.from(
      { length: 80 },
      (_, slot) => `  memory ${0x1000_0000 + slot * 0x20_0000} +4K slot ${slot + 1}\n`,
    );
    const text = `${off.replace('  second', `${slots.join('')}  second`)}guest g {\n  map 0x1000_0000 -> 0x1000_0000 +160M rw-\n}\nvcpu 0 in g {\n  repeat 2 { repeat 80 as i { write 0x1000_0000 + i * 2M } }\n}\n`;
    // The sanitizer would look at all of them after each step.
    const machine = holds(text.replace('memory 0 +64M huge 2M', 'memory 0 +4M').replace('  sanitize\n', ''));
    assert.ok(machine.counter('tables.recycled') > 0);
    assert.ok(machine.pages.size <= 64);
  });
}

// ---- beside the TDP MMU

/** Every statement of the vCPU whole, and one of the host's between each two: that faults take other steps changes nothing of the order. */
function inTurns(text: string): Machine {
  const run = start(text);
  const { machine } = run;
  const isBetween = ({ stack, access }: Task): boolean => stack.length === 0 && access === null;
  const statement = (task: Task): void => {
    const { pc } = task;
    for (let step = 0; step < 20_000 && task.state !== 'done' && task.state !== 'waiting'; step++) {
      run.step(task);
      if (isBetween(task) && task.pc !== pc) return;
    }
  };
  const [vcpu, host] = machine.tasks as [Task, Task | undefined];
  while (vcpu.state !== 'done') {
    statement(vcpu);
    if (host && host.state !== 'done') statement(host);
  }
  assert.ok(run.runToEnd(100_000));
  return machine;
}

/** What the guest has made of its memory, by gfn. */
function memoryOf(machine: Machine): Map<number, string> {
  const found = new Map<number, string>();
  for (const slot of machine.slots.list)
    for (let gfn = slot.base; gfn < slot.base + slot.pages; gfn++) {
      const pfn = machine.resolve(gfn);
      if (!machine.memory.isWritten(pfn)) continue;
      const words = [...machine.memory.page(pfn)].flatMap((word, at) =>
        word === 0 ? [] : [`${at}:${word.toString(16)}`],
      );
      if (words.length > 0) found.set(gfn, words.join(' '));
    }
  return found;
}

for (const [second, paging] of [
  ['tdp ept 4-level', '4-level'],
  ['tdp npt 5-level', '4-level'],
  ['tdp npt 5-level', 'pae'],
] as const)
  for (const large of [false, true])
    test(`${second}, ${paging} guests${large ? ' with NX huge pages' : ''}: random programs hold all invariants at each step, and end as with the TDP MMU`, () => {
      let tables = 0;
      for (let seed = 1; seed <= 5; seed++) {
        const shape = { second, paging, statements: 40, host: true, guest: true, ownCode: true, large, nx: large };
        const text = randomProgram(seed, shape).replace('machine x86-64 {', 'machine x86-64 {\n  sanitize');
        const [on, off] = ['on', 'off'].map((tdpMmu) =>
          inTurns(text.replace('  second-stage', `  policy tdp-mmu = ${tdpMmu}\n  second-stage`)),
        );
        const failures = off!.small.failures.map((each) => each.text);
        assert.deepEqual(
          failures,
          on!.small.failures.map((each) => each.text),
          text,
        );
        assert.ok(!failures.some((each) => each.startsWith('sanitizer')));
        for (const counter of ['accesses', 'faults.guest'] as const)
          assert.equal(off!.counter(counter), on!.counter(counter), `seed ${seed}: ${counter}\n${text}`);
        assert.deepEqual(memoryOf(off!), memoryOf(on!), `seed ${seed}\n${text}`);
        assert.ok([...off!.pages.values()].every(({ shadow }) => shadow));
        tables += off!.pages.size;
      }
      assert.ok(tables > 0);
    });

test('nested guests, whose L1 has no TDP MMU either: random programs hold all invariants at each step', () => {
  for (let seed = 1; seed <= 3; seed++)
    for (const [second, stage] of [
      ['tdp ept 4-level', '4-level'],
      ['tdp npt 5-level', '4-level'],
    ] as const) {
      const text = randomNestedProgram(seed, { second, stage, statements: 12, host: true }).replace(
        'machine x86-64 {',
        'machine x86-64 {\n  sanitize\n  policy tdp-mmu = off',
      );
      const run = start(text);
      assert.ok(run.runToEnd(200_000));
      const broken = run.machine.small.failures.filter((each) => each.text.startsWith('sanitizer'));
      assert.deepEqual(broken, [], text);
      assert.ok([...run.machine.pages.values()].every(({ shadow }) => shadow));
    }
});

// ---- what is shown

test('Page Tables has every root, those too that wait in the hash, and says in which role a table is', () => {
  const machine = holds(toggling('tdp ept 4-level', 'before', 'off'));
  const { answer: roots } = answer(machine, { kind: 'roots' }, MOMENT);
  assert.ok(roots.kind === 'roots');
  const second = roots.roots.filter(({ space }) => space === 'second');
  assert.deepEqual(
    second.map(({ title, vcpus }) => [title.replace(/0x\w+/, 'X'), vcpus]),
    [
      ['EPT root at hpa X', [0]],
      ['EPT root at hpa X (no vCPU has it: it waits in the hash)', []],
    ],
  );
  const { answer: table } = answer(machine, second[0]!.table, MOMENT);
  assert.ok(table.kind === 'table');
  assert.match(table.page!, /direct/);
  assert.match(table.page!, /root of 1/);
});

test('a walk goes through the direct shadow pages to the host frame', () => {
  const machine = holds(`${machineOf('tdp npt 5-level', 'off')}${GUEST}vcpu 0 in g {\n  write 0x401000\n}\n`);
  const { answer: walk } = answer(machine, { kind: 'walk', vcpu: 0, space: 'gva', address: '0x401000' }, MOMENT);
  assert.ok(walk.kind === 'walk');
  assert.equal(walk.second, 'npt');
  assert.equal(walk.outcome.hpa, `0x${(machine.resolve(0x401) * 4096).toString(16)}`);
});

test('the Root Cache has the roots with their roles', () => {
  const machine = holds(toggling('tdp ept 4-level', 'posted', 'off'));
  const { answer: cache } = answer(machine, { kind: 'root-cache' }, MOMENT);
  assert.ok(cache.kind === 'root-cache');
  const [{ roots }] = cache.vcpus as [(typeof cache.vcpus)[number]];
  const cards = roots.filter((root) => root !== null);
  assert.equal(cards.length, 2);
  assert.deepEqual(
    cards.map((root) => root.fields?.find(({ name }) => name === 'cr0_wp')?.value),
    [1, 0],
  );
});

// ---- what cannot be

test('a VM with private memory is refused in words, wherever the policy is chosen', () => {
  for (const [vm, second] of [
    ['snp', 'npt'],
    ['tdx', 'ept'],
    ['software-protected', 'ept'],
  ] as const) {
    const { diagnostics } = parseScenario(
      `machine {\n  memory 0 +4M\n  second-stage tdp ${second} 4-level\n  vm ${vm}\n  maxphyaddr 46\n  policy tdp-mmu = off\n}\nvcpu 0 {}\n`,
    );
    assert.ok(
      diagnostics.some(
        ({ message }) => message === `policy tdp-mmu = off: private memory (vm ${vm}) needs the TDP MMU`,
      ),
      JSON.stringify(diagnostics),
    );
    assert.deepEqual(choosePolicy(DEFAULT_POLICIES, 'tdp-mmu', 'off', vm), {
      error: `policy tdp-mmu = off: private memory (vm ${vm}) needs the TDP MMU`,
    });
  }
});

test('with shadow paging there is no TDP MMU, and the policy changes nothing', () => {
  const text = randomProgram(3, { second: 'shadow', statements: 30, host: true, guest: true });
  const [on, off] = ['on', 'off'].map((tdpMmu) => {
    const run = start(text.replace('  second-stage', `  policy tdp-mmu = ${tdpMmu}\n  second-stage`));
    assert.ok(run.runToEnd(100_000));
    return run;
  });
  assert.equal(off!.machine.steps, on!.machine.steps);
  assert.deepEqual(off!.counters(), on!.counters());
});
