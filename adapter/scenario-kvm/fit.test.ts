import assert from 'node:assert/strict';
import test from 'node:test';
import { parseScenario } from '../../scenario/index.ts';
import { unfit } from './fit.ts';

/** What of a scenario KVM cannot be told, a line each. */
function problems(text: string): string[] {
  const { program, diagnostics } = parseScenario(text);
  assert.ok(program, diagnostics.map(({ message }) => message).join('\n'));
  return unfit(program).map(({ severity, span, message }) => `${span.line} ${severity}: ${message}`);
}

const guests = 'guest g pae { map 0x400000 -> 0x200000 }\nguest h 32-bit { map 0x400000 -> 0x200000 }\n';

test('guests of 32-bit, PAE and 4-level paging fit, each with accesses of its own word', () => {
  assert.deepEqual(
    problems(
      `${guests}guest k { }\nvcpu 0 in g { read 0x400000 fetch 0x400000 cr3 = g cr4.smep = 1 }\nvcpu 1 in h { write 0x400000 cr4.pse = 0 }\nvcpu 2 in k { read.8 0 pkru = 1 }`,
    ),
    [],
  );
});

test('what 32-bit code cannot do is refused by its name', () => {
  assert.deepEqual(problems(`${guests}vcpu 0 in g {\n  read.8 0x400000\n  write.8 0x400000 = 1\n  pkru = 1\n}`), [
    '4 error: read.8: with pae paging the code that makes the accesses is 32-bit, and one instruction has 1, 2 or 4 bytes',
    '5 error: write.8: with pae paging the code that makes the accesses is 32-bit, and one instruction has 1, 2 or 4 bytes',
    '6 error: pkru: with pae paging there are no protection keys',
  ]);
});

test('a vCPU stays in its paging mode', () => {
  assert.deepEqual(problems(`${guests}vcpu 0 in h {\n  cr3 = g\n  cr4.pae = 1\n  cr0.pg = 0\n}`), [
    '4 error: cr3 = g: guest g has pae paging, and vcpu 0 stays with 32-bit: the code that makes the accesses on KVM does not switch',
    '5 error: cr4.pae: the code that makes the accesses on KVM stays with 32-bit paging',
    '6 error: cr0.pg: the code that makes the accesses on KVM stays with 32-bit paging',
  ]);
  assert.deepEqual(problems('guest w 5-level { }\nvcpu 0 in w { read 0 }'), [
    '1 error: guest w has 5-level paging: the code that makes the accesses on KVM has 32-bit, pae and 4-level',
  ]);
});

test('memory that 32-bit code cannot map is refused', () => {
  const slots = (size: string): string => `machine x86-64 { memory 0 +${size} }\n`;
  assert.deepEqual(problems(`${slots('1G')}guest g pae { }\nvcpu 0 in g { read 0 }`), [
    '2 error: guest g: the slots are more than 0x3fe00000 bytes, which is the limit on KVM with pae paging',
  ]);
  assert.deepEqual(problems(`${slots('8G')}guest g 32-bit { tables at 0x1000 }\nvcpu 0 in g { read 0 }`), [
    '2 error: guest g: a slot goes up to 0x200000000: on KVM 0x100000000 is the limit with 32-bit paging',
  ]);
});

test('an access that depends on what an earlier one has found cannot be made', () => {
  assert.deepEqual(
    problems('guest k { }\nvcpu 0 in k {\n  read loaded + 4\n  read error_code\n  expect error_code == 4\n}'),
    [
      '4 error: this read cannot be made: KVM does not tell error_code',
      '5 warning: expect error_code == 4 is not checked: KVM does not tell error_code',
    ],
  );
});

test('what the host or KVM itself decides on a real machine is refused by its name', () => {
  const host = (statement: string): string => `guest k { }\nvcpu 0 in k { read 0 }\nhost h {\n  ${statement}\n}`;
  assert.deepEqual(problems(host('swap-out 0 +4K')), [
    '4 error: swap-out: on a real machine the host decides which memory goes to the disk',
  ]);
  assert.deepEqual(problems(host('recover-nx-huge-pages')), [
    '4 error: recover-nx-huge-pages: KVM’s own worker decides when (nx_huge_pages_recovery_period_ms)',
  ]);
  assert.deepEqual(problems(host('unmap 0 +4K')), []);
  assert.deepEqual(problems('guest k { }\nvcpu 0 in k {\n  async-pf 0x5000\n}'), [
    '3 error: async-pf: the code that makes the accesses on KVM has no handler for such faults',
  ]);
});

test('private memory fits where the VM is software-protected, and what a host or such a guest cannot do is refused', () => {
  const machine = (vm: string, more = ''): string =>
    `machine x86-64 { memory 0 +64M guest-memfd second-stage tdp npt 4-level vm ${vm} ${more} }\n`;
  const vmm = (statement: string): string => `guest k { }\nvcpu 0 in k { read 0 }\nhost h {\n  ${statement}\n}`;
  const soft = machine('software-protected', 'private 0 +4K');
  assert.deepEqual(problems(`${soft}${vmm('convert 0 +4K shared punch 0 +4K shared read 0')}`), []);
  assert.deepEqual(problems(`${soft}guest k { }\nvcpu 0 in k { convert 0 +4K shared }`), []);
  assert.deepEqual(problems(`${soft}guest k pae { }\nvcpu 0 in k { convert 0 +4K shared }`), [
    '3 error: convert: with pae paging the code that makes the accesses on KVM has no such hypercall',
  ]);
  assert.deepEqual(problems(`${soft}${vmm('private read 0')}`), [
    '5 error: private read: the host has no mapping of private memory (guest_memfd)',
  ]);
  assert.deepEqual(problems(`${machine('snp')}${vmm('convert 0 +4K shared')}`), [
    '1 error: vm snp: the code that makes the accesses on KVM has no encrypted guests; “vm software-protected” is possible',
  ]);
  assert.deepEqual(problems(`${machine('software-protected', 'launch 0 +4K')}${vmm('read 0')}`).slice(0, 1), [
    '1 error: launch: KVM puts nothing into the private memory of a software-protected VM; say private',
  ]);
});

const NESTED = `nested n { map 0 -> 0x1000000 +4M }
guest l1 { }
guest l2 in n { map 0x800000 -> 0x10000 }
`;
const npt = 'machine x86-64 { memory 0 +64M second-stage tdp npt 4-level }\n';

test('nested guests fit where L1 has NPT for them, by VMRUN', () => {
  assert.deepEqual(
    problems(
      `${npt}${NESTED}vcpu 0 in l1 { enter l2 { read 0x800000 cr0.wp = 0 }\nunmap 0 +4K in n\nexpect nested.exits == 1 }`,
    ),
    [],
  );
});

test('of nested guests is refused what VMRUN, or 64-bit code, does not have', () => {
  assert.deepEqual(problems(`${NESTED}vcpu 0 in l1 {\n  enter l2 { implicit read 0x800000 }\n  invept n\n}`), [
    '1 error: nested n: the code that makes the accesses on KVM runs its guests by SVM’s VMRUN: “second-stage tdp npt 4-level” is possible',
    '5 error: an implicit access cannot be made on KVM: the processor makes them by itself',
    '6 error: invept: the code that makes the accesses on KVM runs its guests by VMRUN, and SVM has no INVEPT',
  ]);
  assert.deepEqual(problems(`${npt}guest l1 { }\nguest l2 pae { }\nvcpu 0 in l1 {\n  enter l2 { }\n}`), [
    '3 error: guest l2 has pae paging: the code that makes the accesses on KVM nests guests of 4-level paging alone',
  ]);
  assert.deepEqual(problems(`${npt}guest l1 pae { }\nguest l2 { }\nvcpu 0 in l1 {\n  enter l2 { }\n}`), [
    '5 error: enter l2: with pae paging the code that makes the accesses on KVM runs no guests of its own',
  ]);
});
