import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { CounterName } from '../../engine/counters.ts';
import type { Task } from '../../engine/operation.ts';
import { answer } from '../../engine/queries/answer.ts';
import { Run } from '../../engine/run.ts';
import { parseScenario } from '../../scenario/index.ts';

// Small machines, each made for one behaviour of KVM's MMU.

function start(text: string): Run {
  const { program, diagnostics } = parseScenario(text);
  assert.ok(program, diagnostics.map((diagnostic) => `${diagnostic.span.line}: ${diagnostic.message}`).join('\n'));
  return new Run(program);
}

/** Runs to the end; every expectation must hold. */
function holds(text: string): Run {
  const run = start(text);
  assert.equal(run.runToEnd(200_000), true, 'still running');
  assert.equal(run.stuck(), undefined);
  assert.deepEqual(run.machine.small.failures, []);
  return run;
}

const counter = (run: Run, name: CounterName): number => run.machine.counter(name);

/** Steps one task until the step named is next. */
function runUntil(run: Run, task: Task, fn: string, stepNumber: number): void {
  for (let i = 0; i < 5000; i++) {
    const frame = task.stack.at(-1);
    if (frame?.fn === fn && frame.step === stepNumber) return;
    run.step(task);
  }
  assert.fail(`${task.name} never came to step ${stepNumber} of ${fn}`);
}

function finish(run: Run, task: Task): void {
  for (let i = 0; i < 5000 && task.state !== 'done'; i++) run.step(task);
  assert.equal(task.state, 'done');
}

for (const second of ['ept', 'npt']) {
  const machine = `machine x86-64 {\n  memory 0 +64M\n  second-stage tdp ${second} 4-level\n}\n`;

  test(`${second}: a guest table outside memory gives #PF without P, found by emulation`, () => {
    const run = holds(
      `${machine}guest g {\n  entry 0x800000 level 2 = 0x7000_0007\n}\nvcpu 0 in g {\n  read 0x800000\n}\nexpect faults.guest == 1\nexpect emulated == 1\n`,
    );
    assert.equal(run.machine.task(0).cr2, 0x800000n);
  });

  test(`${second}: tables that contain themselves are walked as the hardware walks them`, () => {
    // The last PML4 entry points to the PML4: the address whose indices are all 511 is the PML4 itself.
    const run = holds(
      `${machine}guest g {\n  tables at 0x100000\n  map 0x400000 -> 0x200000 4K\n  entry 0xffff_ff80_0000_0000 level 4 = 0x100003\n}\nvcpu 0 in g {\n  read 0xffff_ffff_ffff_fff8\n  write 0xffff_ffff_ffff_fff0 = 0\n}\nexpect faults.guest == 0\nexpect gpa(0xffff_ffff_ffff_fff8) == 0x100ff8\n`,
    );
    const { answer: table } = answer(
      run.machine,
      { kind: 'table', space: 'guest', vcpu: 0, table: '0x100000', level: 4, base: '0x0' },
      { since: 0, fault: undefined },
    );
    assert.equal(table.kind, 'table');
    assert.equal(table.kind === 'table' && table.runs.find((entry) => entry.index === 511)?.recursive, true);
  });

  test(`${second}: a write to a read-only slot leaves as MMIO, a read of it does not`, () => {
    holds(
      `machine x86-64 {\n  memory 0 +64M\n  memory 0x8000000 +64K read-only\n  second-stage tdp ${second} 4-level\n}\nvcpu 0 {\n  read 0x8000000\n  expect emulated == 0\n  write 0x8000000 = 5\n}\nexpect emulated == 1\nexpect faults.read_only == 1\nexpect u64(0x8000000) == 0\n`,
    );
  });

  test(`${second}: guest tables in a read-only slot are used without setting their bits`, () => {
    const run = holds(
      `machine x86-64 {\n  memory 0 +64M\n  memory 0x8000000 +64K read-only\n  second-stage tdp ${second} 4-level\n}\nguest g {\n  tables at 0x8000000\n  map 0x400000 -> 0x200000 4K rw-\n}\nvcpu 0 in g {\n  write 0x400000 = 7\n}\nexpect faults.guest == 0\nexpect u64(0x200000) == 7\nexpect u64(0x8000000) & 0x20 == 0\n`,
    );
    assert.ok(counter(run, 'emulated') > 0);
  });

  test(`${second}: a first access to no slot installs the MMIO marker, the second is handled by it, and a new slot makes it stale`, () => {
    holds(
      `${machine}vcpu 0 {\n  read 0x9000_0000\n  expect faults.mmio == 1\n  read 0x9000_0000\n  expect faults.mmio == 2\n  wait until slots.generation > 1\n  read 0x9000_0000\n}\nhost vmm {\n  wait until faults.mmio >= 2\n  add slot 5 at 0x9000_0000 +4K\n}\nexpect emulated == 2\nexpect level(0x9000_0000) == 1\n`,
    );
  });

  test(`${second}: an entry that only a bug could have written ends KVM_RUN with an error`, () => {
    const run = start(
      `${machine}vcpu 0 {\n  read 0x1000\n  invlpg 0x1000\n  wait until warnings > 0 || accesses > 5 || faults.fixed > 0\n  wait until step > 0 && spte(0x1000) == ${second === 'ept' ? '0x3a' : '0x4000000001001'}\n  invlpg 0x1000\n  read 0x1000\n}\nhost bug {\n  wait until faults.fixed > 0\n  poke 0x1000 level 1 = ${second === 'ept' ? '0x3a' : '0x4000000001001'}\n}\n`,
    );
    run.runToEnd(100_000);
    assert.equal(counter(run, 'faults.misconfig'), 1);
    assert.match(JSON.stringify(run.machine.small.failures), /KVM_RUN failed/);
    assert.match(JSON.stringify(run.machine.small.warnings), /reserved bits set in the level-1 entry for gpa 0x1000/);
  });

  test(`${second}: dirty logging splits large pages, and a write is fixed without a lock`, () => {
    holds(
      `machine x86-64 {\n  memory 0 +64M huge 2M\n  second-stage tdp ${second} 4-level\n}\nvcpu 0 {\n  write 0x200000 = 1\n  expect level(0x200000) == 2\n  wait until sptes.changed > 500\n  write 0x200000 = 2\n  write 0x201000 = 3\n}\nhost logger {\n  wait until faults.fixed > 0\n  log dirty slot 0 on\n}\nexpect level(0x200000) == 1\nexpect faults.fast == 2\n`,
    );
  });

  test(`${second}: with page-split = lazy a large page of a logged slot stays until it is written`, () => {
    holds(
      `machine x86-64 {\n  memory 0 +64M huge 2M\n  second-stage tdp ${second} 4-level\n  policy page-split = lazy\n}\nvcpu 0 {\n  write 0x200000 = 1\n  write 0x400000 = 1\n  wait until sptes.changed > 4\n  read 0x200000\n  expect level(0x200000) == 2\n  write 0x200000 = 2\n}\nhost logger {\n  wait until faults.fixed > 1\n  log dirty slot 0 on\n}\nexpect level(0x200000) == 1\nexpect level(0x400000) == 2\nexpect u64(0x200000) == 2\n`,
    );
  });

  test(`${second}: when dirty logging ends, large pages come back`, () => {
    holds(
      `machine x86-64 {\n  memory 0 +64M huge 2M\n  second-stage tdp ${second} 4-level\n}\nvcpu 0 {\n  write 0x200000 = 7\n  wait until sptes.changed > 500\n  write 0x201000 = 8\n  wait until level(0x200000) == 2\n  write 0x202000 = 9\n}\nhost logger {\n  wait until faults.fixed > 0\n  log dirty slot 0 on\n  wait until faults.fast > 0\n  log dirty slot 0 off\n}\nexpect level(0x200000) == 2\nexpect u64(0x200000) == 7\nexpect u64(0x201000) == 8\nexpect hpa(0x202000) - hpa(0x200000) == 0x2000\n`,
    );
  });

  test(`${second}: a zap of a part of a large page takes all of the page`, () => {
    holds(
      `machine x86-64 {\n  memory 0 +64M huge 2M\n  second-stage tdp ${second} 4-level\n}\nvcpu 0 {\n  write 0x200000 = 7\n  wait until level(0x200000) == 0\n  read 0x3ff000\n}\nhost h {\n  wait until faults.fixed > 0\n  zap 0x200000 +64K\n}\nexpect level(0x200000) == 2\nexpect faults.fixed == 2\n`,
    );
  });

  test(`${second}: zaps of all roots that overlap in time give up each root once`, () => {
    for (const hosts of [
      'host h { wait until accesses > 20 zap all zap all }',
      'host a { wait until accesses > 20 zap all } host b { wait until accesses > 20 zap all }',
    ]) {
      const run = holds(
        `${machine}vcpu 0 { repeat 100 { read 0x1000 } }\nvcpu 1 { repeat 100 { read 0x1000 } }\n${hosts}\n`,
      );
      assert.equal(run.machine.roots().length, 1);
      const [root] = run.machine.roots();
      const users = run.machine.vcpus.filter((vcpu) => vcpu.root === root!.pfn).length;
      assert.equal(root!.rootCount, users + 1);
      assert.equal(counter(run, 'roots.freed'), counter(run, 'roots.built') - 1);
    }
  });

  test(`${second}: tables that a poke has damaged end the task that runs into them, by name`, () => {
    const run = start(
      `${machine}vcpu 0 { repeat 200 as i { read i * 4K } }\nhost h { wait until accesses > 3 poke 0 level 4 = 0x1000807 zap all }\n`,
    );
    run.runToEnd(100_000);
    assert.match(
      JSON.stringify(run.machine.small.failures),
      /KVM’s tables are damaged: the level-4 table at 0x1000000 has an entry that leads back/,
    );
    for (const lock of run.machine.locks) assert.deepEqual(lock, { writer: -1, readers: [] });
  });

  test(`${second}: migration moves the data and the translation`, () => {
    const run = holds(
      `${machine}vcpu 0 {\n  write 0x3000 = 0xabcd\n  wait until mmu_invalidate_seq > 0\n  read 0x3000\n}\nhost mm {\n  wait until faults.fixed > 0\n  migrate 0x3000 +4K\n}\nexpect u64(0x3000) == 0xabcd\nexpect faults.fixed == 2\n`,
    );
    assert.notEqual(run.machine.resolve(3), run.machine.slots.byId(0)!.backing.pfn + 3);
  });

  test(`${second}: a fault that looked before an invalidation retries after it`, () => {
    const run = start(`${machine}vcpu 0 {\n  read 0x5000\n}\nhost mm {\n  unmap 0x5000 +4K\n}\n`);
    const [vcpu, host] = run.machine.tasks as [Task, Task];
    runUntil(run, vcpu, 'kvm_tdp_mmu_page_fault', 4);
    finish(run, host);
    finish(run, vcpu);
    assert.equal(counter(run, 'faults.retried'), 1);
    assert.equal(counter(run, 'faults.fixed'), 1);
  });

  test(`${second}: of two vCPUs that fault on one page, the slower finds its fault spurious`, () => {
    const run = start(`${machine}vcpu 0 {\n  read 0x5000\n}\nvcpu 1 {\n  read 0x5000\n}\n`);
    const [first, other] = run.machine.tasks as [Task, Task];
    runUntil(run, first, 'kvm_tdp_mmu_map', 1);
    finish(run, other);
    finish(run, first);
    assert.equal(counter(run, 'faults.fixed'), 1);
    assert.equal(counter(run, 'faults.spurious'), 1);
  });

  test(`${second}: a vCPU whose root became obsolete during its fault retries on a fresh one`, () => {
    const run = start(`${machine}vcpu 0 {\n  read 0x5000\n}\nhost vmm {\n  zap all\n}\n`);
    const [vcpu, host] = run.machine.tasks as [Task, Task];
    runUntil(run, vcpu, 'kvm_tdp_mmu_page_fault', 4);
    for (let i = 0; i < 200 && host.state === 'ready'; i++) run.step(host);
    finish(run, vcpu);
    finish(run, host);
    assert.equal(counter(run, 'faults.retried'), 1);
    assert.equal(counter(run, 'roots.built'), 2);
    assert.equal(counter(run, 'roots.freed'), 1);
    assert.equal(run.machine.roots().length, 1);
  });
}

test('the level of a mapping follows host page size, slot alignment and slot end', () => {
  holds(
    `machine x86-64 {\n  memory 0 +2G huge 1G\n  memory 0x1_0010_0000 +6M huge 2M slot 1\n  cpu 1g-pages\n}\nguest g {\n  map 0 -> 0 +8G\n}\nvcpu 0 in g {\n  read 0x4000_0000\n  read 0x1_0010_0000\n  read 0x1_0020_0000\n  read 0x1_0060_0000\n}\nexpect level(0x4000_0000) == 3\nexpect level(0x1_0010_0000) == 1\nexpect level(0x1_0020_0000) == 2\nexpect level(0x1_0060_0000) == 1\n`,
  );
});

test('an access that crosses a page is two translations, and lands in both', () => {
  const run = holds(
    `guest g {\n  map 0x400000 -> 0x200000 4K rw-\n  map 0x401000 -> 0x300000 4K rw-\n}\nvcpu 0 in g {\n  write 0x400ffc = 0x1122334455667788\n}\nexpect u32(0x200ffc) == 0x55667788\nexpect u32(0x300000) == 0x11223344\n`,
  );
  assert.equal(counter(run, 'tlb.hits'), 2);
});

test('a non-canonical address is #GP, not a page fault', () => {
  const run = start(
    'guest g {\n  map 0x400000 -> 0x200000 4K\n}\nvcpu 0 in g {\n  repeat 1 as i { read 0x7fff_ffff_f000 + 0x1000 }\n}\n',
  );
  run.runToEnd(10_000);
  assert.equal(counter(run, 'warnings'), 1);
  assert.equal(counter(run, 'faults.guest'), 0);
});

test('a memslot that cannot be is refused, and the machine goes on as before', () => {
  const run = start(
    'vcpu 0 {\n  wait until warnings == 2\n  read 0x1000\n}\nhost vmm {\n  add slot 4 at 0x3fff000 +8K\n  add slot 0 at 0x1000_0000 +4K\n}\n',
  );
  assert.equal(run.runToEnd(10_000), true);
  assert.equal(counter(run, 'warnings'), 2);
  assert.equal(counter(run, 'faults.fixed'), 1);
  assert.equal(run.machine.slots.list.length, 1);
});

test('tasks that wait for one another for ever are told, not looped', () => {
  const run = start('vcpu 0 {\n  wait until warnings == 1\n}\n');
  assert.equal(run.runToEnd(1000), true);
  assert.equal(run.stuck(), 'vCPU 0 waits for a condition that nobody can make true any more');
});

test('TLB entries survive what they should and no more', () => {
  holds(
    'guest g {\n  map 0x400000 -> 0x200000 4K rw-\n  map 0x800000 -> 0x201000 4K rw- global\n}\nvcpu 0 in g {\n  read 0x400000\n  read 0x800000\n  expect tlb.entries == 2\n  cr3 = g\n  expect tlb.entries == 1\n  read 0x800000\n  expect tlb.entries == 1\n  read 0x400000\n  invlpg 0x800000\n  expect tlb.entries == 1\n  efer.nxe = 0\n  expect tlb.entries == 0\n}\n',
  );
});

test('a stale translation is used until the guest invalidates it', () => {
  holds(
    'guest g {\n  map 0x400000 -> 0x200000 4K rw-\n}\nvcpu 0 in g {\n  write 0x400000 = 1\n  unmap 0x400000 +4K\n  write 0x400000 = 2\n  expect faults.guest == 0\n  invlpg 0x400000\n  write 0x400000 = 3\n  expect faults.guest == 1\n}\nexpect u64(0x200000) == 2\n',
  );
});
