import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LEAF } from '../../engine/formats/compile.ts';
import type { Machine } from '../../engine/machine.ts';
import type { Task } from '../../engine/operation.ts';
import { answer } from '../../engine/queries/answer.ts';
import { Run } from '../../engine/run.ts';
import { findEntry } from '../../engine/tdp/iterate.ts';
import { isPresent } from '../../engine/tdp/spte.ts';
import { parseScenario } from '../../scenario/index.ts';
import { randomProgram } from '../lab/programs.ts';
import { randomNestedProgram } from './nested-programs.ts';

// NX huge pages: no large page is executable, and what is executed is mapped in pages of 4K.

function start(text: string): Run {
  const { program, diagnostics } = parseScenario(text);
  assert.ok(program, diagnostics.map(({ message, span }) => `${span.line}: ${message}`).join('\n'));
  return new Run(program);
}

/** Runs to the end; every expectation must hold. */
function holds(text: string): Machine {
  const run = start(text);
  assert.equal(run.runToEnd(200_000), true, 'still running');
  assert.equal(run.stuck(), undefined);
  assert.deepEqual(run.machine.small.failures, []);
  return run.machine;
}

const machineOf = (second: string, more = ''): string =>
  `machine x86-64 {\n  memory 0 +64M huge 2M\n  memory 0x4000_0000 +2G huge 1G slot 1\n  second-stage ${second}\n  policy nx-huge-pages = on\n  sanitize\n${more}}\n`;

/** Leaves of KVM's tables as `level 2 rw-`, by the gpa that they map (of shadow tables: the gva, which is mapped to itself). */
function leaf(machine: Machine, address: number): string {
  const root = machine.vcpu(0).root;
  const format = machine.isTdp ? machine.secondFormat : machine.shadowFormat(machine.vcpu(0).mmu);
  const { level, lo, hi } = findEntry(machine, root, address / 4096, 1, format);
  if (!isPresent(lo) || format.classify(level, lo) !== LEAF) return 'none';
  const access = format.access(level, lo, hi);
  return `level ${level} r${access & 2 ? 'w' : '-'}${access & 1 ? 'x' : '-'}`;
}

// Shadow pages of what is not dirty grant no writes, and are others than those that do.
const GUEST =
  'guest g {\n  map 0x400000 -> 0x400000 2M dirty\n  map 0x600000 -> 0x600000 2M dirty\n  map 0x4000_0000 -> 0x4000_0000 1G dirty\n}\n';

const LEGACY = 'tdp ept 4-level\n  policy tdp-mmu = off';

for (const second of ['tdp ept 4-level', 'tdp npt 4-level', LEGACY, 'shadow']) {
  const machine = machineOf(second);

  test(`${second}: a large page is not executable, and the fetch from it leads to pages of 4K`, () => {
    const after = holds(
      `${machine}${GUEST}vcpu 0 in g {\n  write 0x400000\n  fetch 0x401000\n  read 0x402000\n  read 0x600000\n}\n`,
    );
    assert.equal(leaf(after, 0x401000), 'level 1 rwx');
    assert.equal(leaf(after, 0x600000), 'level 2 rw-');
    assert.equal(after.counter('nx_lpage_splits'), 1);
  });

  test(`${second}: a table made for a fetch is not replaced by a large page, though none is executed there any more`, () => {
    const after = holds(`${machine}${GUEST}vcpu 0 in g {\n  fetch 0x401000\n  write 0x580000\n}\n`);
    assert.equal(leaf(after, 0x401000), 'level 1 rwx');
    assert.equal(leaf(after, 0x580000), 'level 1 rwx');
  });

  test(`${second}: below a page of 1G only the table on the fetch's way is split, and both tables are counted`, () => {
    const after = holds(
      `${machine}${GUEST}vcpu 0 in g {\n  fetch 0x4000_0000\n  write 0x4020_0000\n  write 0x4000_1000\n}\n`,
    );
    assert.equal(leaf(after, 0x4000_0000), 'level 1 rwx');
    assert.equal(leaf(after, 0x4000_1000), 'level 1 rwx');
    assert.equal(leaf(after, 0x4020_0000), 'level 2 rw-');
    assert.equal(after.counter('nx_lpage_splits'), 2);
  });

  test(`${second}: tables in which no large page could be anyway are marked, and not counted`, () => {
    const small = machine.replace('+64M huge 2M', '+64M');
    const after = holds(`${small}${GUEST}vcpu 0 in g {\n  fetch 0x401000\n}\n`);
    assert.equal(after.counter('nx_lpage_splits'), 0);
    assert.ok([...after.pages.values()].some(({ nxHugePageDisallowed }) => nxHugePageDisallowed));
  });

  test(`${second}: the worker zaps a part of the tables, the oldest first, and large pages come back`, () => {
    const after = holds(
      `${machine}guest g {\n  map 0x400000 -> 0x400000 +16M dirty\n}\nvcpu 0 in g {\n  repeat 5 as i { fetch 0x400000 + i * 2M }\n  wait until slots.generation > 2\n  read 0x400000\n  read 0xc00000\n}\nhost h {\n  wait until nx_lpage_splits == 5\n  recover-nx-huge-pages 2\n  expect nx_lpage_splits == 2\n  add slot 7 at 0x8_0000_0000 +4K\n}\n`,
    );
    assert.equal(leaf(after, 0x400000), 'level 2 rw-');
    assert.equal(leaf(after, 0xc00000), 'level 1 rwx');
    assert.equal(after.counter('nx_lpage_splits'), 2);
  });

  test(`${second}: of a slot that is being logged tables are forgotten, not zapped`, () => {
    const after = holds(
      `${machine}${GUEST}vcpu 0 in g {\n  fetch 0x401000\n  wait until nx_lpage_splits == 0\n}\nhost h {\n  wait until nx_lpage_splits == 1\n  log dirty slot 0 on\n  recover-nx-huge-pages\n}\n`,
    );
    assert.notEqual(leaf(after, 0x401000), 'none');
    assert.ok(![...after.pages.values()].some(({ nxHugePageDisallowed }) => nxHugePageDisallowed));
  });

  test(`${second}: what is zapped is not counted any more`, () => {
    const after = holds(
      `${machine}${GUEST}vcpu 0 in g {\n  fetch 0x401000\n  wait until slots.generation > 2\n  read 0x600000\n}\nhost h {\n  wait until nx_lpage_splits == 1\n  zap all\n  add slot 7 at 0x8_0000_0000 +4K\n}\n`,
    );
    assert.equal(after.counter('nx_lpage_splits'), 0);
    assert.deepEqual(after.small.possibleNxHugePages, []);
  });

  test(`${second}: Page Tables and the Root Cache say where a large page is disallowed`, () => {
    const after = holds(`${machine}${GUEST}vcpu 0 in g {\n  fetch 0x401000\n}\n`);
    const [table] = after.small.possibleNxHugePages;
    const moment = { since: 0, fault: undefined };
    const query = {
      kind: 'table',
      space: 'second',
      vcpu: 0,
      table: `0x${(table! * 4096).toString(16)}`,
      level: 1,
    } as const;
    const { answer: page } = answer(after, { ...query, base: '0x400000' }, moment);
    assert.ok(page.kind === 'table');
    assert.match(page.page!, /NX huge page disallowed/);
    const { answer: cache } = answer(after, { kind: 'root-cache' }, moment);
    assert.ok(cache.kind === 'root-cache');
    assert.deepEqual(
      cache.pages.flatMap(({ hpa, nxDisallowed }) => (nxDisallowed ? [hpa] : [])),
      [query.table],
    );
  });

  test(`${second}: a guest runs to the same end with the policy and without`, () => {
    const body = `${GUEST}vcpu 0 in g {\n  repeat 20 as i {\n    write 0x400000 + i * 4K = i\n    fetch 0x500000 + i * 4K\n    read 0x4000_0000 + i * 1M\n  }\n}\nexpect u64(0x405000) == 5\nexpect faults.guest == 0\n`;
    // The sanitizer looks at each frame of a page of 1G.
    const without = machine.replace('  sanitize\n', '');
    const on = holds(`${without}${body}`);
    const off = holds(`${without.replace('  policy nx-huge-pages = on\n', '')}${body}`);
    assert.equal(off.counter('nx_lpage_splits'), 0);
    assert.ok(on.counter('faults.second') > off.counter('faults.second'));
    assert.equal(leaf(off, 0x401000), 'level 2 rwx');
  });
}

for (const second of ['ept', 'npt'])
  for (const split of ['eager', 'lazy'])
    test(`${second}: where dirty logging splits (${split}) pieces of 4K are executable, and recovered large pages are not`, () => {
      const head = machineOf(`tdp ${second} 4-level`, `  policy page-split = ${split}\n`);
      const text = `${head}${GUEST}vcpu 0 in g {\n  write 0x400000\n  wait until slots.generation > GENERATION\n  write 0x400000\n}\nhost h {\n  wait until faults.fixed > 1\n  log dirty slot 0 on\nOFF  add slot 7 at 0x8_0000_0000 +4K\n}\n`;
      const logged = holds(text.replace('GENERATION', '3').replace('OFF', ''));
      assert.equal(leaf(logged, 0x400000), 'level 1 rwx');
      assert.equal(logged.counter('nx_lpage_splits'), 0, 'the split was not for a fetch');
      const off = holds(text.replace('GENERATION', '4').replace('OFF', '  log dirty slot 0 off\n'));
      assert.equal(leaf(off, 0x400000), 'level 2 rw-');
    });

test('shadow: where dirty logging splits at once, pieces of 4K are executable', () => {
  const head = machineOf('shadow', '  policy page-split = all\n');
  const after = holds(
    `${head}${GUEST}vcpu 0 in g {\n  write 0x400000\n}\nhost h {\n  wait until faults.fixed > 0\n  log dirty slot 0 on\n}\n`,
  );
  assert.equal(leaf(after, 0x401000), 'level 1 r-x');
});

test('after every step of random programs, in which the worker runs too, the sanitizer has nothing to say', () => {
  const withWorker = (text: string): string =>
    text
      .replace('machine x86-64 {', 'machine x86-64 {\n  sanitize')
      .replace(/(host \w+ \{\n {2}wait .*)/, '$1\n  recover-nx-huge-pages 2')
      .replace(/\}\s*$/, '  recover-nx-huge-pages\n}\n');
  let splits = 0;
  for (let seed = 1; seed <= 4; seed++) {
    for (const second of ['shadow', 'tdp ept 4-level'])
      for (const paging of ['4-level', 'pae'] as const) {
        const shape = { second, statements: 40, host: true, guest: true, ownCode: true, large: true, nx: true, paging };
        const text = withWorker(randomProgram(seed, shape));
        const run = start(text);
        assert.ok(run.runToEnd(100_000));
        assert.deepEqual(run.machine.small.failures, [], text);
        splits += [...run.machine.pages.values()].filter(({ nxHugePageDisallowed }) => nxHugePageDisallowed).length;
      }
    const nested = randomNestedProgram(seed, {
      second: 'tdp ept 4-level',
      stage: '4-level',
      statements: 12,
      host: true,
    });
    const huge = nested.replace('machine x86-64 {', 'machine x86-64 {\n  sanitize\n  policy nx-huge-pages = on');
    assert.notEqual(huge, nested);
    const run = start(huge);
    assert.ok(run.runToEnd(100_000));
    assert.deepEqual(
      run.machine.small.failures.filter(({ text }) => text.startsWith('sanitizer')),
      [],
      huge,
    );
  }
  assert.ok(splits > 0, 'no table stood for a fetch');
});

test('a walk in the middle of a table that the worker takes out is retried', () => {
  const run = start(
    `${machineOf('tdp ept 4-level')}${GUEST}vcpu 0 in g {\n  fetch 0x401000\n}\nvcpu 1 in g {\n  wait until nx_lpage_splits == 1\n  read 0x402000\n}\nhost h {\n  wait until nx_lpage_splits == 1\n  recover-nx-huge-pages\n}\n`,
  );
  const [first, second, host] = run.machine.tasks as [Task, Task, Task];
  for (let step = 0; step < 500 && first.state !== 'done'; step++) run.step(first);
  // Shadow pages come first, for which it needs mmu_lock alone.
  const isTdp = (): boolean => (host.stack.at(-1)?.locals as { tdp?: boolean } | undefined)?.tdp === true;
  for (let step = 0; step < 500 && !isTdp(); step++) run.step(host);
  const isInside = (): boolean => {
    const top = second.stack.at(-1);
    return top?.fn === 'kvm_tdp_mmu_map' && (top.locals as { level: number }).level === 1;
  };
  for (let step = 0; step < 500 && !isInside(); step++) run.step(second);
  assert.ok(isInside(), 'it has come to the last level');
  for (let step = 0; step < 500 && host.state !== 'done'; step++) run.step(host);
  assert.equal(host.state, 'done');
  assert.ok(run.runToEnd(10_000));
  assert.deepEqual(run.machine.small.failures, []);
  assert.equal(run.machine.counter('faults.retried'), 1);
  assert.equal(leaf(run.machine, 0x402000), 'level 2 rw-');
});
