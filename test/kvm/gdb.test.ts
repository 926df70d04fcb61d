import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after } from 'node:test';
import { guest, native, withoutKvm } from './kvm.ts';

// A real gdb, all-stop, as people use it.

const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const hasGdb = spawnSync('gdb', ['--version']).error === undefined;
const skip = withoutKvm() ?? (hasGdb ? false : 'there is no gdb');

function gdb(elf: string, options: string, ...commands: string[]): string {
  const script = join(folder, 'commands');
  const connect = `target remote | ${native('kvm-mmu-helper')} --memory 16M ${options} --image ${guest(elf)}`;
  writeFileSync(script, ['set pagination off', 'set confirm off', connect, ...commands].join('\n'));
  const { stdout, stderr } = spawnSync('gdb', ['-nx', '-batch', '-x', script, guest(elf)], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  return stdout + stderr;
}

test('gdb runs a guest to its end and shows what it prints', { skip }, () => {
  const output = gdb('user.elf', '', 'continue');
  // What the guest prints gdb prints on standard error.
  assert.match(output, /page 0 was taken away: it reads 0 again\nthe program has ended\n/);
  assert.match(output, /exited normally/);
});

test('gdb stops at functions and lines, tells callers, steps, and finishes', { skip }, () => {
  const output = gdb(
    'user.elf',
    '',
    'break unmap',
    'continue',
    'backtrace 2',
    'next',
    'info registers rip cr3',
    'finish',
    'continue',
  );
  assert.match(output, /Breakpoint 1, unmap \(address=\d+\)/);
  assert.match(output, /#0 {2}unmap .*\n#1 {2}0x[0-9a-f]+ in kernel_exception/);
  assert.match(output, /rip +0x[0-9a-f]+ .*<unmap\+\d+>/);
  assert.match(output, /cr3 +0xfff000/);
  assert.match(output, /Value returned is/);
  assert.match(output, /exited normally/);
});

test('gdb reads and writes memory and registers, by hardware breakpoint and by stepi', { skip }, () => {
  const output = gdb(
    'faults.elf',
    '',
    'hbreak kernel_main',
    'continue',
    'set var *(long *) 0x400000 = 0x1234',
    'print/x *(long *) 0x400000',
    'set $r15 = 77',
    'stepi',
    'print $r15',
    'print $cr0 & 1',
    'x/i $rip',
    'detach',
  );
  assert.match(output, /= 0x1234\n/);
  assert.match(output, /= 77\n/);
  assert.match(output, /= 1\n/);
  assert.match(output, /=> 0x[0-9a-f]+ <kernel_main\+\d+>:/);
});

test('gdb sees vCPUs as threads, and asks the helper in its own words', { skip }, () => {
  const output = gdb(
    'user.elf',
    '--vcpus 2',
    'info threads',
    'thread 2',
    'print $rdi',
    'monitor QKvm.Stop:guest-pf',
    'monitor nonsense',
    'thread 1',
    // Both would run the same kernel on the same stack.
    'set scheduler-locking on',
    'continue',
  );
  assert.match(output, /Thread 1\.?1? .*vCPU 0/s);
  assert.match(output, /\$\d+ = 1\n/);
  assert.match(output, /Packets of the helper's protocol can be given here/);
  assert.match(output, /received signal SIGTRAP/);
});

test('gdb interrupts a guest that runs, and leaves it running', { skip }, () => {
  const output = gdb(
    'user.elf',
    '',
    // A jump to itself.
    'set var *(unsigned short *) 0x400000 = 0xfeeb',
    'set $rip = 0x400000',
    'shell (sleep 1; pkill -INT -f "^gdb -nx -batch -x $PWD_OF_TEST") &'.replace('$PWD_OF_TEST', folder),
    'continue',
    'print/x $rip',
    'detach',
  );
  assert.match(output, /Program received signal SIGINT/);
  assert.match(output, /\$\d+ = 0x400000/);
});
