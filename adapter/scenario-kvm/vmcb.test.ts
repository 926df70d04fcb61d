import assert from 'node:assert/strict';
import test from 'node:test';
import { LONG_MODE } from '../../engine/guest/registers.ts';
import { vmcbOf, vmExitOf } from './vmcb.ts';

const guest = {
  registers: { ...LONG_MODE, cr3: 0x5000n },
  rip: 0x1234n,
  rsp: 0x2000n,
  rax: 0xffn,
  gdt: [0x3000n, 0x7fn],
  idt: [0x3800n, 0x1ffn],
} as const;

test('a VMCB has the fields at the places that the processor reads, and SVME in its EFER', () => {
  const view = new DataView(vmcbOf({ ...guest, nestedCr3: 0x1800000n }).buffer);
  const quad = (at: number): bigint => view.getBigUint64(at, true);
  assert.equal(view.getUint32(0x10, true), 3, 'intercepts VMRUN and VMMCALL');
  assert.equal(view.getUint32(0x58, true), 1, 'an ASID that is not the host’s');
  assert.deepEqual([quad(0x90), quad(0xb0)], [1n, 0x1800000n]);
  assert.equal(quad(0x4d0), 0x1d01n);
  assert.deepEqual([quad(0x550), quad(0x558), quad(0x578)], [0x5000n, 0x80050033n, 0x1234n]);
  assert.deepEqual([view.getUint16(0x410, true), view.getUint16(0x412, true)], [8, 0xa9b]);
  assert.deepEqual([view.getUint32(0x464, true), quad(0x468)], [0x7f, 0x3000n]);
  assert.equal(new DataView(vmcbOf({ ...guest, nestedCr3: undefined }).buffer).getBigUint64(0x90, true), 0n);
});

test('an exit is told by three words', () => {
  const bytes = new Uint8Array(24);
  const view = new DataView(bytes.buffer);
  [0x400n, 6n, 0x9000n].forEach((value, at) => {
    view.setBigUint64(8 * at, value, true);
  });
  assert.deepEqual(vmExitOf(bytes), { code: 0x400n, info: [6n, 0x9000n] });
});
