import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cli, file } from './cli.ts';

// `kvm-mmu compare`: what policies cost on one scenario, and what they leave.

const outcomes = (...args: readonly string[]) =>
  JSON.parse(cli('compare', ...args, '--json').out) as {
    policy: string;
    ok: boolean;
    counters: Record<string, number>;
    tables: string[];
  }[];

test('toggling CR0.WP: Linux 5.15 builds everything anew each time, the series finds its root, today nothing happens', () => {
  const [before, posted, today] = outcomes('examples/wp-toggle.mmu', '--policy', 'roots=before,posted,today');
  assert.equal(today!.ok, true);
  const toggles = 2000;
  assert.equal(before!.counters['modes.changed'], toggles);
  assert.deepEqual(
    [before!, posted!, today!].map(({ counters }) => [
      counters['roots.unloads'],
      counters['roots.freed'],
      counters['roots.hits'],
    ]),
    [
      [toggles, toggles, 0],
      // One for the first change to each of both modes; then they are all there.
      [0, 0, toggles - 1],
      [0, 0, 0],
    ],
  );
  assert.ok(before!.counters['faults.second']! > toggles, 'each write faults again');
  assert.equal(posted!.counters['roots.built'], 2, 'CR0.WP is in the role still');
  assert.ok(posted!.counters['faults.second']! < 2 * today!.counters['faults.second']!);
  assert.ok(
    before!.counters['sptes.changed']! < 10 * toggles,
    'a root that goes takes what is present along, and no more',
  );
  assert.ok(today!.counters.exits! < 10, 'with EPT CR0.WP is the guest’s own');
});

test('the copied quadrant is told by the tables that are left, address by address', () => {
  const { status, out } = cli('compare', 'examples/quadrant.mmu', '--policy', 'quadrant=copied,parity,address');
  assert.equal(status, 0, 'the scenario’s own expectations hold');
  assert.match(
    out,
    /copied \/ parity: \n(.*\n)? +0xc2af2000: level 1, rwxs, hpa 0x1028f2000 \/ level 1, r-xs, hpa 0x102af2000/,
  );
  const [, parity, address] = outcomes('examples/quadrant.mmu', '--policy', 'quadrant=copied,parity,address');
  assert.equal(parity!.tables[0], address!.tables[0], 'both rules are one at level 1');
});

test('what compare cannot take is named', () => {
  for (const [args, words] of [
    [[], /compare takes one file/],
    [['examples/wp-toggle.mmu'], /--policy NAME=VALUE,VALUE…, such as --policy roots=today,before/],
    [['examples/wp-toggle.mmu', '--policy', 'roots=today'], /--policy NAME=VALUE,VALUE…/],
    [
      ['examples/wp-toggle.mmu', '--policy', 'roots=today,never'],
      /policy roots cannot be never; it is today, before or posted/,
    ],
    [
      ['examples/wp-toggle.mmu', '--policy', 'roots=today,before', '--policy', 'page-split=lazy,eager'],
      /values of roots and of page-split cannot be compared at once/,
    ],
    [
      ['examples/wp-toggle.mmu', '--policy', 'roots=today,before', '--policy', 'roots=posted'],
      /--policy roots is given twice/,
    ],
    [
      ['examples/wp-toggle.mmu', '--policy', 'roots=today,before', '--param', 'npt=0'],
      /--param and --modules are for labs: say --kernel, too/,
    ],
    [['examples/wp-toggle.mmu', '--target', 'emulator'], /compare takes two targets or more/],
    [['examples/wp-toggle.mmu', '--target', 'emulator,qemu'], /--target must be of emulator and kvm, not qemu/],
    [
      ['examples/wp-toggle.mmu', '--target', 'emulator,kvm', '--policy', 'roots=today,before'],
      /a real KVM has no policies to choose/,
    ],
    [['examples/wp-toggle.mmu', '--policy', 'root=a,b'], /unknown policy root; there are page-split, roots, quadrant/],
  ] as const) {
    const { status, err } = cli('compare', ...args);
    assert.equal(status, 2);
    assert.match(err, words);
  }
});

test('a machine that cannot be made is told in words, by run and by compare', () => {
  const path = file(
    'overlap.mmu',
    'nested n { map 0 -> 0 +64M 4K }\nguest l1 { map 0x400000 -> 0 4K }\nguest l2 in n { map 0x400000 -> 0 4K }\nvcpu 0 in l1 { enter l2 { read 0x400000 } }\n',
  );
  const words = /tables of l2 at gpa 0x3fff000 are at L1’s gpa 0x3fff000, among those of n: say tables at/;
  const ran = cli('run', path);
  assert.equal(ran.status, 2);
  assert.match(ran.err, words);
  const compared = cli('compare', path, '--policy', 'roots=today,before');
  assert.equal(compared.status, 3);
  assert.match(compared.err, words);
});

test('a second policy is chosen for all', () => {
  const split = (value: string): number[] =>
    outcomes('examples/wp-toggle.mmu', '--policy', 'roots=today,before', '--policy', `page-split=${value}`).map(
      ({ counters }) => counters['roots.built']!,
    );
  assert.deepEqual(split('lazy'), [1, 2001]);
});
