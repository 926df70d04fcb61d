import assert from 'node:assert/strict';
import test from 'node:test';
import { LONG_MODE, PAGING_REGISTERS } from '../../engine/guest/registers.ts';
import { x86Regime } from '../../engine/guest/x86-regime.ts';
import type { Program } from '../../engine/program.ts';
import { parseScenario } from '../../scenario/index.ts';
import { actionAddress } from './actions.ts';
import { directAddress, planStubs, type Stubs } from './stubs.ts';

function programOf(text: string): Program {
  const { program, diagnostics } = parseScenario(text);
  assert.ok(program, diagnostics.map(({ message }) => message).join('\n'));
  return program;
}

const ROOT = 0x100;

/** Translates an address of the stubs by their own tables, below a root table that has nothing else. */
function translate(stubs: Stubs, address: bigint, user: boolean, write = true): string {
  const root = new Uint8Array(4096);
  const view = new DataView(root.buffer);
  stubs.entries.forEach((entry, at) => {
    const offset = (stubs.index + at) * stubs.entryBytes;
    if (stubs.entryBytes === 8) view.setBigUint64(offset, entry, true);
    else view.setUint32(offset, Number(entry), true);
  });
  const tables = {
    page(frame: number): Uint32Array {
      const bytes = frame === ROOT ? root : stubs.pages.get(BigInt(frame) * 4096n - stubs.gpa);
      return bytes ? new Uint32Array(bytes.buffer) : new Uint32Array(1024);
    },
  };
  const registers = { ...LONG_MODE, ...PAGING_REGISTERS[stubs.paging], cr3: BigInt(ROOT) << 12n };
  // Large pages are of no use where CR4.PSE may be 0.
  const cr4 = stubs.paging === '32-bit' ? registers.cr4 & ~0x10n : registers.cr4;
  const regime = x86Regime({ ...registers, cr4 }, { maxPhyAddr: 46, features: new Set() }, undefined);
  const walk = regime.walk(tables, address, { kind: write ? 'write' : 'fetch', user });
  return walk.gpa === undefined ? walk.end : `0x${walk.gpa.toString(16)}`;
}

for (const paging of ['4-level', 'pae', '32-bit'] as const)
  test(`${paging}: the stubs see themselves, and all of the guest's memory, which the user does not`, () => {
    const program = programOf(
      `machine x86-64 {\n  memory 0 +9M\n  memory 0x40000000 +16K\n}\nguest g ${paging} { map 0x400000 -> 0x200000 }\nvcpu 0 in g { }\nhost h { add slot 5 at 0x70000000 +4K }\n`,
    );
    const stubs = planStubs(program, 1).get(paging)!;
    assert.equal(stubs.gpa, 0x70200000n, 'a slot above all others');
    for (const gpa of [0n, 0x8ff123n, 0x40003ff8n, 0x70000000n]) {
      assert.equal(translate(stubs, directAddress(stubs, gpa), false), `0x${gpa.toString(16)}`);
      assert.equal(translate(stubs, directAddress(stubs, gpa), true), 'guest-fault');
    }
    assert.throws(() => directAddress(stubs, 0xc0000000n), /gpa 0xc0000000 lies in no memory that the stubs map/);
    const code = actionAddress(stubs, 'read', 4, true);
    assert.equal(translate(stubs, code, true, false), `0x${(stubs.gpa + (code - stubs.base)).toString(16)}`);
    assert.equal(
      translate(stubs, actionAddress(stubs, 'read', 4, false), true, false),
      'guest-fault',
      'the supervisor’s',
    );
  });

test('the stubs take entries of the root tables that the scenario does not use', () => {
  const plan = (paging: 'pae' | '32-bit', gva: string): Stubs =>
    planStubs(programOf(`guest g ${paging} { map ${gva} -> 0x200000 4K }\nvcpu 0 in g { }\n`), 1).get(paging)!;
  assert.equal(plan('pae', '0xc0000000').base, 0x80000000n);
  assert.equal(plan('pae', '0').base, 0xc0000000n);
  // 64M of memory are 16 tables, below the last entry.
  assert.equal(plan('32-bit', '0xffc00000').end, 0xffc00000n);
  assert.equal(plan('32-bit', '0xf0000000').base, 0xfbc00000n);
  const full = [0, 1, 2, 3].map((giga) => `map 0x${((giga << 30) >>> 0).toString(16)} -> 0x200000 4K`).join(' ');
  assert.throws(
    () => planStubs(programOf(`guest g pae { ${full} }\nvcpu 0 in g { }\n`), 1),
    /every entry of the root tables is used/,
  );
});

test('guests of several paging modes have stubs of their own, one above the other', () => {
  const planned = [
    ...planStubs(
      programOf(
        'guest a { }\nguest b pae { }\nguest c 32-bit { }\nvcpu 0 in a { }\nvcpu 1 in b { }\nvcpu 2 in c { }\n',
      ),
      3,
    ).values(),
  ];
  assert.deepEqual(
    planned.map(({ paging, slot, gpa }) => `${paging} ${slot} 0x${gpa.toString(16)}`),
    ['4-level 32000 0x4000000', 'pae 32001 0x4200000', '32-bit 32002 0x4400000'],
  );
});

test('nested guests see the stubs where L1 has them, by an entry of its nested tables that the scenario does not use', () => {
  const plan = (nested: string): Stubs =>
    planStubs(
      programOf(
        `machine x86-64 { memory 0 +64M second-stage tdp npt 4-level }\nnested n { ${nested} }\nguest l1 { }\nguest l2 in n { }\nvcpu 0 in l1 { enter l2 { } }\nvcpu 1 in l1 { }\n`,
      ),
      2,
    ).get('4-level')!;
  const stubs = plan('map 0 -> 0x1000000 +4M');
  assert.equal(stubs.gpa, 0x80_0000_0000n);
  const { index, entry, tables, hostSave, vmcbs } = stubs.nested!;
  assert.equal(index, 1);
  assert.equal(entry, (stubs.gpa + tables) | 0x67n);
  assert.ok(vmcbs > hostSave && vmcbs + 2n * 4096n <= stubs.size);
  const quad = (offset: bigint): bigint => new DataView(stubs.pages.get(offset)!.buffer).getBigUint64(0, true);
  assert.equal(quad(tables), (stubs.gpa + tables + 4096n) | 0x67n);
  assert.equal(quad(tables + 4096n), stubs.gpa | 0xe7n);
  assert.equal(plan('map 0x8000000000 -> 0x1000000 +4M').gpa, 0x100_0000_0000n, 'above the last that is used');
});
