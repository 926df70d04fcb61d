import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Inference } from '../../engine/history/infer.ts';
import { builtRoots } from '../../engine/queries/built-answers.ts';
import { DIRECT, Events, FROZEN, GUEST_MODE, LINK, leaf, mapped, ROOT, SHADOW, SHADOW_32 } from './events.ts';

// Events that may be of more than one thing: what follows is right, or it is said that it may not be.

/** A machine that has mapped gfn 5. */
const begun = (): Events => new Events().page(10, 0, ROOT).map(10, 0, 0x1000n, 5, 0x77n);
/** A machine with shadow tables that has mapped gva 0x5000. */
function shadowed(pid = 10, frames = 0x4000n): Events {
  const events = new Events().page(pid, 0x34, SHADOW | 4).fault(pid, 0, 0x5000);
  for (const level of [3, 2, 1]) events.page(pid, 0x30 + level, SHADOW | level);
  return events.spte(pid, 5, leaf(0x77n), (frames << 12n) + 0x28n);
}

test('a second stage stays one when a nested guest’s tables are shadowed', () => {
  const [machine] = begun()
    .page(10, 0x123, SHADOW | GUEST_MODE | 4)
    .page(10, 0x124, SHADOW | 3)
    .spte(10, 9, leaf(0x99n), 0x9000_048n)
    .change(10, 1, 6, 0n, leaf(0x78n))
    .machines();
  assert.equal(machine!.tables.kind, 'npt');
  assert.equal(machine!.tables.certainty, 'inferred');
  assert.deepEqual(mapped(machine!), { live: [['5=77', '6=78']], dying: [] });
});

test('what looked like a shadow page is a nested guest’s once the TDP MMU is told of', () => {
  const [machine] = new Events()
    .entry(10, 0)
    .page(10, 0x123, SHADOW | GUEST_MODE | 4)
    .page(10, 0, ROOT)
    .map(10, 0, 0x1000n, 5, 0x77n)
    .machines();
  assert.equal(machine!.tables.kind, 'npt');
  assert.match(machine!.tables.why, /begins after/);
});

test('a machine that is known to have shadow tables takes no changes of a second stage', () => {
  const [machine] = shadowed()
    .zapAll(10)
    .change(10, 4, 0, 0n, (0x1000n << 12n) | LINK)
    .change(10, 4, 0, (0x1000n << 12n) | LINK, 0n)
    .machines(new Map([[10, 0]]), 'shadow');
  assert.deepEqual(mapped(machine!), { live: [], dying: [['5=77']] });
});

/** All is given up, and mapped anew before the old tree is taken down. */
const rebuilt = (zapper: number): Events => begun().zapAll(zapper).page(10, 0, ROOT).map(10, 0, 0x2000n, 5, 0x77n);

test('a tree that was given up is taken down, not the one that maps the same by now', () => {
  const [machine] = rebuilt(10).change(20, 1, 5, leaf(0x77n), 0n).machines();
  assert.deepEqual(mapped(machine!), { live: [['5=77?']], dying: [[]] });
  // What only one of them maps is of that one.
  const [other] = rebuilt(10).change(10, 1, 6, 0n, leaf(0x78n)).change(20, 1, 6, leaf(0x78n), 0n).machines();
  assert.deepEqual(mapped(other!), { live: [['5=77']], dying: [['5=77']] });
  // And so is what a fault does.
  const [again] = rebuilt(10)
    .fault(10, 0, 0x6000)
    .change(10, 1, 5, leaf(0x77n), FROZEN)
    .change(10, 1, 5, 0n, leaf(0x79n))
    .machines();
  assert.deepEqual(mapped(again!), { live: [['5=79']], dying: [['5=77']] });
});

test('tables are given up by threads that are no vCPU too', () => {
  assert.deepEqual(mapped(rebuilt(20).machines()[0]!), { live: [['5=77']], dying: [['5=77']] });
  const [own] = rebuilt(20).machines(new Map([[10, 0]]), 'npt');
  assert.deepEqual(mapped(own!), { live: [['5=77']], dying: [['5=77']] });
  // Until something tells whose they were, that is in doubt.
  assert.match(begun().zapAll(20).machines()[0]!.tables.why, /may be another’s/);
  const [down] = begun()
    .zapAll(20)
    .change(20, 4, 0, (0x1000n << 12n) | LINK, 0n)
    .machines();
  assert.equal(down!.tables.certainty, 'inferred');
  // It was another machine's: this one goes on with what it has.
  const [going] = begun()
    .zapAll(20)
    .fault(10, 0, 0x6000)
    .change(10, 1, 6, 0n, leaf(0x78n))
    .machines(new Map([[10, 0]]), 'npt');
  assert.deepEqual(mapped(going!), { live: [['5=77', '6=78']], dying: [] });
  assert.equal(going!.tables.certainty, 'inferred');
});

/** Two machines, each with a vCPU, that have mapped the same gfn to different frames. */
const two = (): Events => begun().entry(10, 0).entry(30, 0).page(30, 0, ROOT).map(30, 0, 0x2000n, 5, 0x88n);

test('of several machines all are in doubt when a thread of nobody’s gives all tables up', () => {
  const machines = two().zapAll(99).machines();
  assert.deepEqual(
    machines.map(({ tables }) => tables.certainty),
    ['stale', 'stale'],
  );
  assert.match(machines[0]!.tables.why, /kvm_mmu_zap_all_fast/);
});

test('memory that the host takes back puts every machine with shadow tables in doubt', () => {
  assert.equal(shadowed().machines()[0]!.tables.why, 'worked out from tracepoints');
  for (const own of [undefined, new Map([[10, 0]])])
    assert.match(
      shadowed()
        .unmap(99)
        .machines(own, own && 'shadow')[0]!.tables.why,
      /MMU notifier/,
    );
});

test('leaves of an unsync page, and what was synchronized, are in doubt until they are set again', () => {
  const unsync = (): Events => shadowed().sync(10, 0x31, SHADOW | 1, 'unsync');
  const live = (events: Events): readonly string[] => mapped(events.machines()[0]!).live[0]!;
  assert.deepEqual(live(unsync()), ['5=77?']);
  assert.deepEqual(live(unsync().spte(10, 6, leaf(0x78n), 0x4000_030n)), ['5=77?', '6=78?']);
  const synced = (): Events => unsync().sync(10, 0x31, SHADOW | 1, 'sync');
  assert.deepEqual(live(synced().spte(10, 6, leaf(0x78n), 0x4000_030n)), ['5=77?', '6=78']);
  assert.deepEqual(live(synced().spte(10, 5, leaf(0x79n), 0x4000_028n)), ['5=79']);
  assert.match(
    synced().machines()[0]!.tables.why,
    /1 table has entries that KVM may have changed since without an event/,
  );
  assert.equal(synced().machines()[0]!.tables.certainty, 'inferred', 'the others are as events tell');
});

test('a thread is of the machine that has what it changes, even if that comes later', () => {
  const unclear = (): Events => two().entry(31, 1).fault(31, 1, 0x6000).change(31, 1, 6, 0n, leaf(0x89n));
  for (const { tables } of unclear().machines()) assert.match(tables.why, /do not tell which/);
  // An entry that only one of them has.
  const [first, second] = unclear()
    .change(31, 1, 5, leaf(0x88n), leaf(0x88n) & ~2n)
    .machines();
  assert.deepEqual([mapped(first!).live, mapped(second!).live], [[['5=77']], [['5=88', '6=89']]]);
  assert.deepEqual([first!.tables.certainty, second!.tables.certainty], ['inferred', 'inferred']);
  assert.deepEqual(second!.threads, [
    { thread: 30, vcpu: 0 },
    { thread: 31, vcpu: 1 },
  ]);
  // A table that it made, in which another thread maps something.
  const linked = two()
    .entry(31, 1)
    .fault(31, 1, 0x20_0000)
    .change(31, 2, 0x200, 0n, (0x3000n << 12n) | LINK)
    .change(31, 1, 0x200, 0n, leaf(0x90n))
    .fault(30, 0, 0x20_1000)
    .change(30, 1, 0x201, 0n, leaf(0x91n))
    .machines();
  assert.deepEqual(
    linked.map((each) => mapped(each).live),
    [[['5=77']], [['5=88', '200=90', '201=91']]],
  );
  assert.deepEqual(
    linked.map(({ tables, mismatches }) => [tables.certainty, mismatches]),
    [
      ['inferred', 0],
      ['inferred', 0],
    ],
  );
});

test('a zap of a shadow page is nobody’s while it may be another machine’s', () => {
  const [own] = shadowed()
    .zapPage(77, 0x31, SHADOW | 1)
    .machines(new Map([[10, 0]]), 'shadow');
  assert.deepEqual(mapped(own!).live, [['5=77']]);
  assert.match(own!.tables.why, /zapped/);
  // A thread of the machine's that is no vCPU.
  const [known] = shadowed()
    .zapPage(77, 0x31, SHADOW | 1)
    .machines(
      new Map([
        [10, 0],
        [77, undefined],
      ]),
      'shadow',
    );
  assert.deepEqual([mapped(known!).live, known!.tables.certainty], [[[]], 'inferred']);
  // The only machine that has it.
  const [only] = shadowed()
    .zapPage(77, 0x31, SHADOW | 1)
    .machines();
  assert.deepEqual(mapped(only!).live, [[]]);
  const both = shadowed()
    .page(50, 0x34, SHADOW | 4)
    .fault(50, 0, 0x5000);
  for (const level of [3, 2, 1]) both.page(50, 0x30 + level, SHADOW | level);
  both.spte(50, 5, leaf(0x78n), 0x5000_028n).zapPage(77, 0x31, SHADOW | 1);
  const machines = both.machines();
  assert.deepEqual(
    machines.map((each) => mapped(each).live),
    [[['5=77']], [['5=78']]],
  );
  assert.deepEqual(
    machines.map(({ tables }) => tables.certainty),
    ['stale', 'stale'],
  );
});

test('a fault goes on below the root that its vCPU has, and makes no root of its own', () => {
  const [machine] = shadowed()
    .fault(10, 0, 0x80_0000_5000n)
    .page(10, 0x43, SHADOW | 3)
    .page(10, 0x42, SHADOW | 2)
    .page(10, 0x41, SHADOW | 1)
    .spte(10, 6, leaf(0x78n), 0x5000_028n)
    .machines();
  assert.deepEqual(mapped(machine!), { live: [['5=77', '8000005=78']], dying: [] });
});

for (const [name, directories] of [
  ['a guest of 32 bits', [0, 1, 2, 3].map((quadrant) => [0x30, SHADOW_32 | 2 | (quadrant << 5)])],
  ['a guest with PAE', [0, 1, 2, 3].map((index) => [0x30 + index, SHADOW | 2])],
  ['a guest without paging', [0, 1, 2, 3].map((index) => [index * 2 ** 18, SHADOW | DIRECT | 2])],
] as const)
  test(`${name} has a root of four page directories`, () => {
    const events = new Events();
    for (const [gfn, role] of directories) events.page(10, gfn!, role!);
    const child = name.includes('32') ? SHADOW_32 | 1 | (1 << 5) : SHADOW | 1;
    const [machine] = events
      .fault(10, 0, 0x4020_5000)
      .page(10, 0x50, child)
      .spte(10, 0x205, leaf(0x77n), 0x4000_028n)
      .machines();
    assert.equal(machine!.tables.kind, 'shadow');
    assert.deepEqual(mapped(machine!), { live: [['40205=77']], dying: [] });
    const roots = builtRoots({ tables: machine!.tables, maxPhyAddr: 52 });
    assert.deepEqual(
      roots.map(({ format, present, title }) => [format, present, title]),
      [['KVM shadow, PAE', 4, 'Shadow root']],
    );
  });

test('a guest that is reset has page directories again, and tables that another thread gives up end them', () => {
  const events = shadowed().entry(10, 0);
  for (let index = 0; index < 4; index++) events.page(10, index * 2 ** 18, SHADOW | DIRECT | 2);
  const format = (): string[] =>
    builtRoots({ tables: events.machines()[0]!.tables, maxPhyAddr: 52 })
      .filter(({ vcpus, invalid }) => vcpus.length > 0 && !invalid)
      .map((root) => `${root.format}: ${root.present}`);
  assert.deepEqual(format(), ['KVM shadow, PAE: 4']);
  events.page(10, 0x60, SHADOW_32 | 2).zapAll(20);
  for (let index = 1; index < 4; index++) events.page(10, 0x60, SHADOW_32 | 2 | (index << 5));
  assert.deepEqual(format(), ['KVM shadow, PAE: 3']);
});

test('without the TDP MMU a second stage is in shadow pages, and stays a second stage', () => {
  const events = new Events().page(10, 0, ROOT).fault(10, 0, 0x5000);
  for (const level of [3, 2, 1]) events.page(10, 0, (ROOT & ~15) | level);
  events.spte(10, 5, leaf(0x77n), 0x4000_028n);
  for (const [own, kind] of [[], [new Map([[10, 0]]), 'npt']] as const) {
    const [machine] = events.machines(own, kind);
    assert.equal(machine!.tables.kind, 'npt');
    assert.deepEqual(mapped(machine!), { live: [['5=77']], dying: [] });
    assert.ok(machine!.tables.tables.has(0x4000), 'the table’s address is told');
  }
  // What is dropped with a page, and what is dropped without a word.
  const [zapped] = events.zapPage(10, 0, (ROOT & ~15) | 1).machines();
  assert.deepEqual(mapped(zapped!).live, [[]]);
  const [gone] = events.zapAll(10).zapPage(10, 0, ROOT).page(10, 0, ROOT).machines();
  assert.deepEqual(mapped(gone!), { live: [[]], dying: [] });
  assert.match(events.unmap(99).machines()[0]!.tables.why, /MMU notifier/);
});

test('what the processor is follows from what is present, and rather from its exits', () => {
  const frozen = (): Events => new Events().fault(10, 0, 0x5000).change(10, 1, 5, leaf(0x77n), (1n << 63n) | FROZEN);
  assert.equal(frozen().machines()[0]!.tables.kind, 'npt');
  const ept = begun().tell(10, 'kvm_exit', { exit_reason: 48, isa: 1, vcpu_id: 0 });
  assert.equal(ept.machines()[0]!.tables.kind, 'ept');
});

test('time is linear in events: tables that come and go, and trees that are given up', () => {
  const places = begun();
  const PAIRS = 40_000;
  for (let count = 0; count < PAIRS; count++) {
    const link = (BigInt(0x5000 + count) << 12n) | LINK;
    places.change(10, 2, 512, 0n, link).change(10, 1, 513, 0n, leaf(0x99n)).change(10, 2, 512, link, 0n);
  }
  const trees = new Events().entry(10, 0);
  for (let count = 0; count < 400; count++) {
    trees.page(10, 0, ROOT).map(10, 0, BigInt(0x1000 + 4 * count), 5, 0x77n);
    for (let gfn = 6; gfn < 106; gfn++) trees.change(10, 1, gfn, 0n, leaf(BigInt(gfn)));
    trees.zapAll(10);
  }
  for (const { recording } of [places, trees]) {
    recording.settle();
    const begin = Date.now();
    const inference = new Inference(recording);
    inference.goTo(recording.length);
    assert.ok(Date.now() - begin < 5000, `${recording.length} events took ${Date.now() - begin} ms`);
    assert.ok(inference.machines()[0]!.tables.tables.size < 200);
  }
});

test('a tree that is taken down is gone when it is empty', () => {
  const down = rebuilt(10)
    .change(20, 4, 0, (0x1000n << 12n) | LINK, 0n)
    .change(20, 3, 0, (0x1001n << 12n) | LINK, FROZEN)
    .change(20, 2, 0, (0x1002n << 12n) | LINK, FROZEN)
    .change(20, 1, 5, leaf(0x77n), FROZEN)
    .change(20, 1, 6, 0n, FROZEN);
  const [machine] = down.machines();
  assert.deepEqual(mapped(machine!), { live: [['5=77']], dying: [] });
  assert.equal(machine!.tables.tables.size, 4);
  assert.equal(machine!.tables.certainty, 'inferred');
});

test('shadow pages of a fault that is not told of hang nowhere, and that is said', () => {
  const events = new Events().page(10, 0x34, SHADOW | 4);
  for (const level of [3, 2, 1]) events.page(10, 0x30 + level, SHADOW | level);
  const [machine] = events.spte(10, 5, leaf(0x77n), 0x5000_028n).machines();
  assert.equal(machine!.tables.certainty, 'inferred');
  assert.match(machine!.tables.why, /do not tell which entries lead to 3 of its 4 tables$/);
  assert.equal(shadowed().machines()[0]!.tables.why, 'worked out from tracepoints');
});
