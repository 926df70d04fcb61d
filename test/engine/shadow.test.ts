import assert from 'node:assert/strict';
import { test } from 'node:test';
import { roleField, roleWords } from '../../engine/kernel/role.ts';
import { Run } from '../../engine/run.ts';
import type { MmuPage } from '../../engine/tdp/mmu-page.ts';
import { parseScenario } from '../../scenario/index.ts';

// Shadow paging in every mode of the guest's, each behaviour with a small machine whose books are checked after every step.

const MACHINE = 'machine {\n  memory 0 +64M\n  second-stage shadow\n  sanitize\n}\n';

function holds(text: string, machine = MACHINE): Run {
  const { program, diagnostics } = parseScenario(machine + text);
  assert.ok(program, diagnostics.map(({ span, message }) => `${span.line}: ${message}`).join('\n'));
  const run = new Run(program);
  assert.ok(run.runToEnd(200_000), 'still running');
  assert.deepEqual(run.machine.small.failures, []);
  return run;
}

/** Shadow pages by level, the upper ones first, in words: `level 2, 4-byte q3 … of gfn 0x100`. */
const pages = ({ machine }: Run): MmuPage[] =>
  [...machine.pages.values()].sort((a, b) => b.level - a.level || a.gfn - b.gfn || a.role - b.role);
const words = (run: Run): string[] =>
  pages(run).map(({ role, gfn }) => `${roleWords(role)} of gfn 0x${gfn.toString(16)}`);

test('without paging direct pages map guest-physical memory, below four tables of 1G each', () => {
  const run = holds(
    'vcpu 0 {\n  write 0x1000 = 5\n  read 0x201000\n  expect u64(0x1000) == 5\n}\nexpect faults.second == 2\n',
  );
  assert.deepEqual(words(run), [
    'level 2, 8-byte, wux, nx !wp, direct of gfn 0x0',
    ...[1, 2, 3].map((quarter) => `level 2, 8-byte, wux, nx !wp, direct of gfn 0x${(quarter * 0x40000).toString(16)}`),
    'level 1, 8-byte, wux, nx !wp, direct of gfn 0x0',
    'level 1, 8-byte, wux, nx !wp, direct of gfn 0x200',
  ]);
});

test('32-bit paging: one directory has four shadow pages, and one table two', () => {
  const run = holds(
    'guest g 32-bit {\n  tables at 0x100000\n  map 0x400000 -> 0x200000 +16K rw-\n  map 0x700000 -> 0x300000 +16K rw-\n}\nvcpu 0 in g {\n  write 0x400000\n  write 0x700000\n}\nexpect faults.guest == 0\n',
  );
  const quadrants = (level: number): number[] =>
    pages(run)
      .filter((page) => page.level === level)
      .map(({ role }) => roleField(role, 'quadrant'))
      .sort();
  assert.deepEqual(quadrants(2), [0, 1, 2, 3]);
  assert.deepEqual(quadrants(1), [0, 1]);
  assert.equal(new Set(pages(run).map(({ gfn }) => gfn)).size, 2, 'of two tables of the guest’s');
});

test('a 4M page of 32-bit paging is two direct pages, or as many as are touched', () => {
  const run = holds(
    'guest g 32-bit {\n  tables at 0x100000\n  map 0x800000 -> 0x800000 4M rw-\n}\nvcpu 0 in g {\n  write 0x800000\n  write 0xa00000\n}\n',
    MACHINE.replace('+64M', '+64M huge 2M'),
  );
  // The host's pages are of 2M: each half of the guest's page is one entry.
  assert.deepEqual(
    pages(run).filter(({ role }) => roleField(role, 'direct') === 1),
    [],
  );
  assert.equal(run.machine.counter('faults.fixed'), 2);
});

test('PAE: a page of each PDPTE that is there; 5 levels: a page a level', () => {
  const pae = holds(
    'guest g pae {\n  tables at 0x100000\n  map 0x400000 -> 0x200000 4K rw-\n  map 0xc0000000 -> 0x300000 4K rw-\n}\nvcpu 0 in g {\n  write 0x400000\n  write 0xc0000000\n}\n',
  );
  assert.deepEqual(
    pages(pae).map(({ level }) => level),
    [2, 2, 1, 1],
  );
  const five = holds('guest g 5-level {\n  map 0x400000 -> 0x200000 4K rw-\n}\nvcpu 0 in g {\n  write 0x400000\n}\n');
  assert.deepEqual(
    pages(five).map(({ level }) => level),
    [5, 4, 3, 2, 1],
  );
});

test('PAE: a PDPTE that the guest has written counts from its next write to CR3 on', () => {
  holds(
    'guest g pae {\n  map 0x400000 -> 0x200000 4K rw-\n}\nvcpu 0 in g {\n  read 0x400000\n  map 0x80000000 -> 0x201000 4K rw-\n  read 0x80000000\n  expect faults.guest == 1\n  cr3 = g\n  read 0x80000000\n}\nexpect faults.guest == 1\n',
  );
});

test('PAE: a write of the same CR3 with the same PDPTEs keeps the root', () => {
  const run = (more: string): number =>
    holds(
      `guest g pae {\n  map 0x400000 -> 0x200000 4K rw-\n}\nvcpu 0 in g {\n  read 0x400000\n${more}  cr3 = g\n  read 0x400000\n}\n`,
    ).machine.counter('tables.reused');
  assert.equal(run(''), 0);
  assert.equal(run('  map 0x80000000 -> 0x201000 4K rw-\n'), 1, 'the directory, below a new root');
});

test('a store to a table goes through the root, which is no flood of writes; in a 32-bit guest through the last quarter', () => {
  const edits = (addresses: readonly string[]): string =>
    addresses.map((gva) => `  map ${gva} -> 0x300000 4K rw-\n`).join('');
  const four = holds(
    `guest g {\n  map 0x400000 -> 0x200000 4K rw-\n}\nvcpu 0 in g {\n  read 0x400000\n${edits(['0x8000000000', '0x10000000000', '0x18000000000', '0x20000000000'])}}\n`,
  );
  assert.equal(four.machine.counter('tables.flooded'), 0);
  const narrow = holds(
    `guest g 32-bit {\n  map 0x400000 -> 0x200000 4K rw-\n}\nvcpu 0 in g {\n  read 0x400000\n${edits(['0x800000', '0xc00000', '0x1000000', '0x1400000'])}}\n`,
  );
  assert.deepEqual(
    pages(narrow)
      .filter(({ level, invalid }) => level === 2 && !invalid)
      .map(({ role }) => roleField(role, 'quadrant')),
    [3],
  );
});

test('a store to a 32-bit directory that changes nothing is emulated too, as that of one entry', () => {
  const run = holds(
    'guest g 32-bit {\n  map 0x400000 -> 0x200000 4K rw-\n}\nvcpu 0 in g {\n  read 0x400000\n  map 0x800000 -> 0x800000 4M rw-\n  map 0x800000 -> 0x800000 4M rw-\n}\n',
  );
  assert.equal(run.machine.counter('emulated'), 2);
});

test('below a guest’s 2M page on 4K of the host’s there is a direct page, with the rights of the guest’s entry', () => {
  const run = holds(
    'guest g {\n  tables at 0x100000\n  map 0x400000 -> 0x800000 2M r-x user\n}\nvcpu 0 in g {\n  read 0x400000\n  user fetch 0x401000\n}\n',
  );
  const [direct] = pages(run).filter(({ role }) => roleField(role, 'direct') === 1);
  assert.equal(`${direct!.level} 0x${direct!.gfn.toString(16)} ${roleField(direct!.role, 'access')}`, '1 0x800 5');
});

test('a large page that holds a table of the guest’s is not mapped large', () => {
  const text = (tables: string): string =>
    `guest g {\n  tables at ${tables}\n  map 0x800000 -> 0x800000 2M rw-\n}\nvcpu 0 in g {\n  write 0x900000\n}\n`;
  const large = MACHINE.replace('+64M', '+64M huge 2M');
  assert.equal(pages(holds(text('0x100000'), large)).at(-1)!.level, 2, 'a 2M entry ends the walk');
  assert.equal(pages(holds(text('0x800000'), large)).at(-1)!.level, 1);
});

test('a table that is written is emulated above the last level, and at the last one unsync until the guest flushes', () => {
  const edit = (what: string): string =>
    `guest g {\n  map 0x400000 -> 0x200000 +16K rw-\n}\nvcpu 0 in g {\n  read 0x400000\n  ${what}\n}\n`;
  // A page beside the others: its entry is in the table that is shadowed.
  const last = holds(edit('map 0x408000 -> 0x300000 4K rw-'));
  assert.equal(pages(last).at(-1)!.shadow!.unsync, true);
  assert.equal(last.machine.counter('emulated'), 0);
  // A page elsewhere needs another table, and its entry one level above.
  const upper = holds(edit('map 0x800000 -> 0x300000 4K rw-'));
  assert.equal(upper.machine.counter('emulated'), 1);
  const flushed = holds(edit('map 0x408000 -> 0x300000 4K rw-\n  cr3 = g\n  read 0x400000'));
  assert.equal(pages(flushed).at(-1)!.shadow!.unsync, false);
});

test('three writes to an upper table without a walk between them, and it is no table any more', () => {
  const maps = ['0x800000', '0xa00000', '0xc00000'].map((gva) => `  map ${gva} -> 0x300000 4K rw-\n`);
  const run = holds(
    `guest g {\n  map 0x400000 -> 0x200000 4K rw-\n}\nvcpu 0 in g {\n  read 0x400000\n${maps.join('')}}\nexpect tables.flooded == 1\n`,
  );
  assert.equal(run.machine.counter('tables.flooded'), 1);
});

test('a change that the guest has not flushed is not seen, and after INVLPG it is', () => {
  const text = (flush: string): string =>
    `guest g {\n  map 0x400000 -> 0x200000 4K rw-\n}\nvcpu 0 in g {\n  write 0x400000 = 1\n  map 0x400000 -> 0x300000 4K rw-\n  ${flush}\n  write 0x400000 = 2\n`;
  holds(`${text('')}}\nexpect u64(0x200000) == 2\n`);
  holds(`${text('invlpg 0x400000')}}\nexpect u64(0x300000) == 2\nexpect u64(0x200000) == 1\n`);
});

test('without CR0.WP the supervisor writes to a read-only page of the user’s, who is kept out meanwhile', () => {
  const run = holds(
    'guest g {\n  map 0x400000 -> 0x200000 4K r-x user\n}\nvcpu 0 in g {\n  cr4.smep = 1\n  cr0.wp = 0\n  write 0x400000 = 7\n  expect u64(0x200000) == 7\n  user read 0x400000\n  write 0x400000 = 8\n}\nexpect faults.guest == 0\n',
  );
  // Each takes the page away from the other: the lifted entry is not the user's, and the user's not writable.
  assert.equal(run.machine.counter('faults.fixed'), 3);
});

test('MMIO: the marker keeps the guest’s rights, and a new slot makes it stale', () => {
  const run = holds(
    'guest g {\n  map 0x400000 -> 0x8000000 4K rw-\n}\nvcpu 0 in g {\n  read 0x400000\n  write 0x400000 = 1\n  wait until slots.generation > 1\n  write 0x400000 = 9\n  expect u64(0x8000000) == 9\n}\nhost h {\n  wait until emulated > 1\n  add slot 7 at 0x8000000 +4K\n}\n',
  );
  assert.equal(run.machine.counter('emulated'), 2);
});

test('of a 32-bit directory the entry that is stored loses its links, whichever half of 8 bytes it is', () => {
  for (const gva of ['0x400000', '0x800000']) {
    // The page’s table goes, and another comes: what it mapped before must not be found.
    const run = holds(
      `guest g 32-bit {\n  tables at 0x100000\n  map 0x400000 -> 0x200000 4K rwx\n  map 0x800000 -> 0x300000 4K rwx\n}\nvcpu 0 in g {\n  read ${gva}\n  entry ${gva} level 2 = 0\n  invlpg ${gva}\n  read ${gva}\n}\nexpect faults.guest == 1\nexpect tables.zapped == 0\n`,
    );
    assert.equal(run.machine.counter('emulated'), 1);
  }
});
