import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { cli, file } from './cli.ts';

for (const name of readdirSync('examples').filter((each) => each.endsWith('.mmu'))) {
  test(`the example ${name} runs and what it expects holds`, () => {
    const { status, out, err } = cli('run', `examples/${name}`);
    assert.equal(status, 0, `${out}${err}`);
  });
}

test('run exits 1 when an expectation fails, and says where', () => {
  const path = file('fails.mmu', 'vcpu 0 {\n  read 0x1000\n}\nexpect faults.second == 7\n');
  const { status, err } = cli('run', path);
  assert.equal(status, 1);
  assert.match(err, /fails\.mmu:4: expect faults\.second == 7: left is 1, right is 7/);
  const json = JSON.parse(cli('run', path, '--json').out);
  assert.equal(json.ok, false);
  assert.equal(json.counters['faults.second'], 1);
  assert.deepEqual(json.failures, [{ text: 'expect faults.second == 7', line: 4, actual: 'left is 1, right is 7' }]);
});

test('run names what is wrong with a file, an option or an endless scenario', () => {
  assert.match(cli('run').err, /^kvm-mmu: run takes one file/);
  assert.equal(cli('run').status, 2);
  assert.match(cli('run', '/nowhere.mmu').err, /cannot read \/nowhere\.mmu/);
  assert.match(cli('run', '--jsn', 'x').err, /Unknown option '--jsn'/);
  assert.match(cli('fly').err, /unknown command fly/);
  const { status, err } = cli(
    'run',
    file('endless.mmu', 'vcpu 0 {\n  loop { read 0x1000 }\n}\n'),
    '--max-steps',
    '5000',
  );
  assert.equal(status, 3);
  assert.match(err, /still running after 5000 steps/);
  const bad = cli('run', file('bad.mmu', 'machine x86-64 {\n  memory 0x123 +64M\n}\n'));
  assert.equal(bad.status, 2);
  assert.match(bad.err, /bad\.mmu:2:\d+: error: .*0x123/);
});

test('decode says what an entry means in each format', () => {
  assert.match(
    cli('decode', '0x8000000000200163', '--level', '1').out,
    /^PTE \(level 1\) 0x8000000000200163: leaf rw-s page at 0x200000 \(4K\)/,
  );
  assert.match(
    cli('decode', '0x200000b77', '--format', 'ept', '--level', '1').out,
    /EPT PTE \(level 1\) 0x200000b77: leaf rwx page at 0x200000000 \(4K\)/,
  );
  assert.match(
    cli('decode', '0x6', '--format', 'ept', '--level', '1').out,
    /MMIO marker[\s\S]*refused: writable but not readable/,
  );
  assert.match(cli('decode', '0x80000000000005a0', '--format', 'npt', '--level', '2').out, /frozen/);
  assert.match(
    cli('decode', '0x4000000000001', '--format', 'x86-64', '--level', '4', '--maxphyaddr', '46').out,
    /refused: address bit 50 beyond MAXPHYADDR 46/,
  );
  const entry = JSON.parse(cli('decode', '0x83', '--level', '2', '--json').out);
  assert.equal(entry.state, 'leaf');
  assert.equal(entry.size, 0x200000);
  assert.equal(cli('decode', 'zz').status, 2);
  assert.match(
    cli('decode', '0x1', '--format', 'sparc').err,
    /unknown format sparc; there are x86-64, x86-64-5, pae, x86-32, ept, /,
  );
  assert.match(cli('decode', '0x1', '--level', '7').err, /--level must be one of 1, 2, 3, 4, not 7/);
  assert.match(cli('decode', '0x10000000000000000').err, /more than 64 bits/);
});

test('run ends with words where a scenario has damaged KVM’s tables', () => {
  const damage = (entry: string) =>
    `machine x86-64 { memory 0 +64M }\nvcpu 0 { read 0x1000 }\nhost h {\n  wait until accesses > 0\n  poke ${entry}\n}\n`;
  const cyclic = cli('run', file('cyclic.mmu', damage('0 level 4 = 0x1000807')));
  assert.match(cyclic.out, /tables +damaged: the level-4 table at 0x1000000 has an entry that leads back/);
  // A table in memory that nobody has written is an empty one.
  const empty = cli('run', file('empty.mmu', damage('0x200000 level 2 = 0x3ff0000807')));
  assert.equal(empty.status, 0, empty.err);
  assert.match(empty.out, /tables +0x[0-9a-f]{16}/);
});
