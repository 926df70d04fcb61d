import assert from 'node:assert/strict';
import test from 'node:test';
import type { Machine } from '../../engine/machine.ts';
import { answer } from '../../engine/queries/answer.ts';
import type { Query, WalkAnswer } from '../../engine/queries/answers.ts';
import { Run } from '../../engine/run.ts';
import { parseScenario } from '../../scenario/index.ts';

// Walks that a person asks for in a VM with private memory: which tables they go through, and what refuses the page at their end.

function ran(machine: string, tasks: string): Machine {
  const { program, diagnostics } = parseScenario(`machine x86-64 {\n${machine}\n}\n${tasks}\n`);
  assert.ok(program, JSON.stringify(diagnostics));
  const run = new Run(program);
  run.runToEnd(3_000);
  return run.machine;
}

function walk(machine: Machine, query: Partial<Extract<Query, { kind: 'walk' }>>): WalkAnswer {
  const full = { kind: 'walk', vcpu: 0, space: 'gpa', address: '0x0', ...query } as const;
  const { answer: found } = answer(machine, full, { since: machine.log.length, fault: undefined });
  assert.ok(found.kind === 'walk', JSON.stringify(found));
  return found;
}

/** Words of the sentence, without host addresses. */
const says = ({ secondName, sentence }: WalkAnswer): string =>
  `${secondName}: ${sentence.replace(/hpa 0x[0-9a-f]+/g, 'hpa …')}`;

const TDX = 'vm tdx memory 0 +4M guest-memfd private 0x1000 +8K';

test('of TDX private memory is walked to in the secure EPT, shared memory in KVM’s own, by attribute, shared bit or question', () => {
  const machine = ran(TDX, 'vcpu 0 {\n  accept 0x1000\n  private write 0x1000 = 1\n  shared write 0x3000 = 1\n}');
  for (const space of ['gpa', 'gva'] as const) {
    assert.equal(
      says(walk(machine, { space, address: '0x1000' })),
      `secure EPT: ${space} 0x1000 is gpa 0x1000 and hpa …: 4 memory references`,
    );
    assert.equal(
      says(walk(machine, { space, address: '0x3000' })),
      `EPT: ${space} 0x3000 is gpa 0x3000 and hpa …: 4 memory references`,
    );
    assert.match(
      says(walk(machine, { space, address: '0x1000', private: false })),
      /^EPT: .* gpa 0x1000: EPT level-\d entry \d+ is not present$/,
    );
    assert.match(
      says(walk(machine, { space, address: '0x3000', private: true })),
      /^secure EPT: .* gpa 0x3000: EPT level-1 entry 3 is not present$/,
    );
  }
  const [own, shared] = walk(machine, { address: '0x1000' }).registers;
  assert.deepEqual([own!.name, shared!.name], ['EPTP', 'shared EPTP']);
  assert.equal(walk(machine, { address: '0x1000' }).references[0]!.table, own!.value);
  assert.equal(walk(machine, { address: '0x3000' }).references[0]!.table, shared!.value);
  // An address with the shared bit, as KVM has it in an exit.
  assert.equal(
    says(walk(machine, { address: '0x800000003000' })),
    'EPT: gpa 0x800000003000 is gpa 0x3000 and hpa …: 4 memory references',
  );
  assert.match(says(walk(machine, { address: '0x800000001000' })), /^EPT: .*level-\d entry \d+ is not present$/);
});

test('of TDX a page that waits to be accepted refuses the guest’s accesses; nobody’s look is refused', () => {
  const machine = ran(TDX, 'vcpu 0 {\n  accept 0x1000\n  private write 0x1000\n  private read 0x2000\n}');
  assert.equal(walk(machine, { address: '0x2000' }).outcome.status, 'done');
  const refused = walk(machine, { space: 'gva', address: '0x2000', access: 'read' });
  assert.equal(
    says(refused),
    'secure EPT: gva 0x2000 is gpa 0x2000 and hpa …, but the guest has not accepted the page (TDG.MEM.PAGE.ACCEPT)',
  );
  assert.equal(refused.outcome.status, 'refused');
  assert.equal(refused.outcome.errorCode, '0x100000000', 'as the fault that it would be');
  assert.equal(walk(machine, { space: 'gva', address: '0x1000', access: 'read' }).outcome.status, 'done');
});

const SNP = 'vm snp memory 0 +4M guest-memfd second-stage tdp npt 4-level launch 0 +16K';

test('of SNP the RMP refuses what a VMPL may not do, with the error code of the fault', () => {
  const machine = ran(SNP, 'vcpu 0 {\n  rmpadjust 0x1000 vmpl 2 r--\n  vmpl 2\n  read 0x1000\n}');
  const at = { space: 'gva', address: '0x1000' } as const;
  assert.equal(walk(machine, at).outcome.status, 'done');
  assert.equal(walk(machine, { ...at, access: 'read' }).outcome.status, 'done');
  const refused = walk(machine, { ...at, access: 'write' });
  assert.equal(says(refused), 'NPT: gva 0x1000 is gpa 0x1000 and hpa …, but VMPL 2 may not write hpa …: it has r--');
  // P, W, U; RMP, final address, private, VMPL.
  assert.equal(BigInt(refused.outcome.exitInfo!), 0x15_8000_0007n);
});

test('of SNP a page that was not validated is the guest’s #VC, and with paging on its tables say what is meant', () => {
  const guest =
    'guest g {\n  map 0x400000 -> 0x8000 +4K rw- private\n  map 0x500000 -> 0x9000 +4K rw- shared\n  map 0x501000 -> 0x8000 +4K rw- shared\n}';
  const machine = ran(
    `${SNP} launch 0x3f_0000 +64K private 0x8000 +4K`,
    `${guest}\nvcpu 0 in g {\n  write 0x500000 = 1\n  read 0x400000\n}`,
  );
  const refused = walk(machine, { space: 'gva', address: '0x400000', access: 'read' });
  assert.match(refused.sentence, /, but the guest has not accepted hpa 0x[0-9a-f]+ \(PVALIDATE\): #VC$/);
  assert.equal(refused.outcome.errorCode, undefined);
  for (const [address, access] of [
    ['0x500000', 'write'],
    ['0x501000', 'read'],
  ] as const)
    assert.equal(walk(machine, { space: 'gva', address, access }).outcome.status, 'done', address);
});
