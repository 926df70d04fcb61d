import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HAZARD_NAMES } from '../engine/attributes/hazards.ts';
import { INJECTIONS } from '../engine/injections.ts';
import { DEFAULT_POLICIES, POLICY_VALUES } from '../engine/policies.ts';
import type { Program, Statement } from '../engine/program.ts';
import { parseScenario } from './index.ts';

function programOf(text: string): Program {
  const { program, diagnostics } = parseScenario(text);
  assert.deepEqual(diagnostics, []);
  return program!;
}

/** Plain data without spans, with numbers and names as they are written. */
function plain(value: unknown): unknown {
  return JSON.parse(
    JSON.stringify(value, (key, item) => {
      if (key === 'span') return undefined;
      if (typeof item === 'bigint') return `0x${item.toString(16)}`;
      if (item?.kind === 'number') return `0x${item.value.toString(16)}`;
      if (item?.kind === 'name') return item.path.map((part: unknown) => JSON.stringify(plain(part))).join(' ');
      return item;
    }),
  );
}

const HOST_SLOTS = 'machine { memory 0 +64M memory 0x1_0000_0000 +1G }\n';
/** A machine whose memory can be private. */
const SNP = 'machine { memory 0 +64M guest-memfd second-stage tdp npt 4-level vm snp }\n';

/** What one statement of a vCPU, or of the host, is lowered to. */
function statement(text: string, owner: 'vcpu' | 'host' = 'vcpu'): unknown {
  const block = owner === 'vcpu' ? 'vcpu 0 in k' : 'host h';
  const machine = /private|shared|pvalidate|punch|rmp|vmpl/.test(text) ? SNP : HOST_SLOTS;
  const program = programOf(`${machine}guest k {}\nnested n {}\n${block} { ${text} }`);
  assert.equal(program.tasks[0]!.body.length, 1, text);
  return plain(program.tasks[0]!.body[0]);
}

const access = { kind: 'access', access: 'read', size: 8, implicit: false };
const mapping = {
  ...{ gva: '0x400000', gpa: '0x200000', size: '0x1000', pageLevel: 1 },
  ...{ write: true, execute: true, user: false, fields: {} },
};

const page = (instruction: object) => ({ kind: 'page-instruction', address: '0x200000', instruction });

const VCPU: readonly (readonly [string, object])[] = [
  ['read 0x400000', { ...access, address: '0x400000' }],
  ['write.4 4K = 0x1234', { ...access, access: 'write', size: 4, address: '0x1000', value: '0x1234' }],
  ['fetch.1 0', { ...access, access: 'fetch', size: 1, address: '0x0' }],
  ['private read 0', { ...access, address: '0x0', isPrivate: true }],
  ['pvalidate 0x200000 2M', page({ name: 'PVALIDATE', level: 2, validated: true })],
  ['pvalidate 0x200000 off', page({ name: 'PVALIDATE', level: 1, validated: false })],
  ['rmpadjust 0x200000 vmpl 2 rw-', page({ name: 'RMPADJUST', level: 1, vmpl: 2, rights: 3 })],
  ['rmpadjust 0x200000 2M vmpl 1 off', page({ name: 'RMPADJUST', level: 2, vmpl: 1, rights: 0 })],
  ['vmpl 3', { kind: 'vmpl', vmpl: 3 }],
  [
    'repeat 2 as i { convert (8K * i) +4K shared }',
    {
      ...{ kind: 'repeat', count: '0x2', variable: 'i' },
      body: [
        {
          ...{ kind: 'convert', size: '0x1000', isPrivate: false },
          base: { kind: 'binary', left: '0x2000', operator: '*', right: '"i"' },
        },
      ],
    },
  ],
  ['user write 0', { ...access, access: 'write', address: '0x0', cpl: 3 }],
  ['supervisor read 0', { ...access, address: '0x0', cpl: 0 }],
  ['implicit read 0', { ...access, address: '0x0', implicit: true }],
  ['cr0.wp = 0', { kind: 'register', register: 'cr0', bit: 'wp', value: '0x0' }],
  ['cr3 = k', { kind: 'register', register: 'cr3', value: '"k"' }],
  ['pkru = 0xffff_fffc', { kind: 'register', register: 'pkru', value: '0xfffffffc' }],
  ['invlpg 0x400000', { kind: 'invlpg', address: '0x400000' }],
  ['invpcid 2', { kind: 'invpcid', type: 2 }],
  ['invpcid 0, 1, 0x400000', { kind: 'invpcid', type: 0, pcid: '0x1', address: '0x400000' }],
  ['repeat 3 { invlpg 0 }', { kind: 'repeat', count: '0x3', body: [{ kind: 'invlpg', address: '0x0' }] }],
  ['repeat 3 as i { read i }', { kind: 'repeat', count: '0x3', variable: 'i', body: [{ ...access, address: '"i"' }] }],
  ['loop { read 0 }', { kind: 'repeat', body: [{ ...access, address: '0x0' }] }],
  ['map 0x400000 -> 0x200000', { kind: 'map', mapping }],
  [
    'map 0x400000 -> 0x200000 2M r-x user',
    { kind: 'map', mapping: { ...mapping, size: '0x200000', pageLevel: 2, write: false, user: true } },
  ],
  [
    'map 0x400000 -> 0x200000 +12K rw- supervisor',
    { kind: 'map', mapping: { ...mapping, size: '0x3000', pageLevel: 3, execute: false } },
  ],
  [
    'map 0x400000 -> 0x200000 +8M 4K r-- global accessed dirty key 3',
    {
      kind: 'map',
      mapping: { ...mapping, size: '0x800000', write: false, execute: false, fields: { G: 1, A: 1, D: 1, PK: 3 } },
    },
  ],
  ['map (4M) -> (1M + 1M)', { kind: 'map', mapping }],
  [
    'entry 0x400000 level 2 = 1 << 63',
    {
      kind: 'map',
      mapping: {
        ...{ ...mapping, gpa: '0x0', write: false, execute: false },
        raw: { level: 2, value: '0x8000000000000000' },
      },
    },
  ],
  ['unmap 0x400000 +2M', { kind: 'unmap', gva: '0x400000', size: '0x200000' }],
  [
    'protect 0x400000 +4K r-- user',
    { kind: 'protect', gva: '0x400000', size: '0x1000', write: false, execute: false, user: true },
  ],
  [
    'expect faults.guest == 1',
    {
      kind: 'expect',
      expectation: {
        condition: { kind: 'binary', operator: '==', left: '"faults" "guest"', right: '0x1' },
        text: 'faults.guest == 1',
      },
    },
  ],
  ['enter k { read 0 }', { kind: 'enter', guest: 'k', body: [{ ...access, address: '0x0' }] }],
  ['smm { read 0 }', { kind: 'smm', body: [{ ...access, address: '0x0' }] }],
  ['unmap 0 +4K in n', { kind: 'unmap', gva: '0x0', size: '0x1000', nested: 'n' }],
  ['invept n', { kind: 'invept', nested: 'n' }],
  ['invept all', { kind: 'invept' }],
  ['wait until vcpu[0].cr0.wp', { kind: 'wait', condition: '"vcpu" "0x0" "cr0" "wp"' }],
  ['async-pf 0x5000', { kind: 'async-pf', gpa: '0x5000', sendAlways: false }],
  ['async-pf 0x5000 send-always', { kind: 'async-pf', gpa: '0x5000', sendAlways: true }],
  ['async-pf off', { kind: 'async-pf', sendAlways: false }],
];

const HOST: readonly (readonly [string, object])[] = [
  [
    'add slot 3 at 0x4000_0000 +16M huge 2M read-only',
    { kind: 'slot-add', slot: { id: 3, base: '0x40000000', size: '0x1000000', readonly: true, pageLevel: 2 } },
  ],
  ['delete slot 1', { kind: 'slot-delete', id: 1 }],
  ['move slot 1 to 0x8000_0000', { kind: 'slot-move', id: 1, base: '0x80000000' }],
  ['log dirty slot 0 on', { kind: 'slot-log', id: 0, enable: true }],
  ['log dirty slot 0 off', { kind: 'slot-log', id: 0, enable: false }],
  ['zap 0 +2M', { kind: 'zap', range: { base: '0x0', size: '0x200000' } }],
  ['zap all', { kind: 'zap' }],
  ['unmap 0 +4K', { kind: 'notifier', base: '0x0', size: '0x1000', how: 'unmap' }],
  ['migrate 8K +4K', { kind: 'notifier', base: '0x2000', size: '0x1000', how: 'migrate' }],
  ['poke 0x1000 level 1 = 0x6', { kind: 'poke', gpa: '0x1000', level: 1, value: '0x6' }],
  ['cpuid maxphyaddr 40', { kind: 'cpuid', maxPhyAddr: 40 }],
  ['shared write 0 = 1', { ...access, access: 'write', address: '0x0', value: '0x1', isPrivate: false }],
  ['swap-out 0x1000 +8K', { kind: 'notifier', base: '0x1000', size: '0x2000', how: 'swap-out' }],
  ['recover-nx-huge-pages', { kind: 'recover-nx-huge-pages', ratio: 60 }],
  ['recover-nx-huge-pages 2', { kind: 'recover-nx-huge-pages', ratio: 2 }],
  ['inject root-leak', { kind: 'inject', name: 'root-leak' }],
  ['convert 0x1000 +8K private', { kind: 'convert', base: '0x1000', size: '0x2000', isPrivate: true }],
  ['rmpupdate 0x1000 shared', { kind: 'rmpupdate', gpa: '0x1000', level: 1 }],
  [
    'rmpupdate 0x200000 2M private as 0x400000 asid 7',
    { kind: 'rmpupdate', gpa: '0x200000', level: 2, to: { gpa: '0x400000', asid: 7 } },
  ],
  ['punch 0x1000 +4K', { kind: 'punch', base: '0x1000', size: '0x1000' }],
];

for (const [text, expected] of VCPU) test(`vcpu: ${text}`, () => assert.deepEqual(statement(text), expected));
for (const [text, expected] of HOST) test(`host: ${text}`, () => assert.deepEqual(statement(text, 'host'), expected));

test('every kind of statement of the contract can be written', () => {
  const kinds = new Set([...VCPU, ...HOST].map(([, expected]) => (expected as { kind: string }).kind));
  const all: Record<Exclude<Statement['kind'], 'leave' | 'rsm'>, true> = {
    ...{
      access: true,
      register: true,
      invlpg: true,
      invpcid: true,
      repeat: true,
      map: true,
      unmap: true,
      protect: true,
    },
    ...{ expect: true, wait: true, 'slot-add': true, 'slot-delete': true, 'slot-move': true, 'slot-log': true },
    ...{ zap: true, notifier: true, poke: true, inject: true, cpuid: true, enter: true, invept: true, smm: true },
    ...{ convert: true, 'page-instruction': true, vmpl: true, rmpupdate: true, punch: true },
    'recover-nx-huge-pages': true,
    'async-pf': true,
  };
  assert.deepEqual([...kinds].sort(), Object.keys(all).sort());
});

test('every policy, mistake and hazard can be written', () => {
  for (const [name, values] of Object.entries(POLICY_VALUES))
    for (const value of values)
      assert.equal(
        (
          programOf(`machine { memory 0 +4M policy ${name} = ${value} }\nvcpu 0 {}`).machine
            .policies as unknown as Record<string, string>
        )[name],
        value,
      );
  for (const name of Object.keys(INJECTIONS)) programOf(`host h { inject ${name} }`);
  for (const name of HAZARD_NAMES) assert.equal(programOf(`vcpu 0 {}\nexpect never ${name}`).never![0]!.hazard, name);
});

test('a machine says all that it has', () => {
  const { machine } = programOf(`
    machine x86-64 {
      memory 0 +64M
      memory 0x1_0000_0000 +1G huge 2M
      memory 0xfff00000 +64K read-only slot 7
      memory 0x8000_0000 +4K
      second-stage tdp npt 4-level
      maxphyaddr 40
      cpu 1g-pages
      policy page-split = lazy
    }
    vcpu 0 {}`);
  assert.deepEqual(plain(machine), {
    slots: [
      { id: 0, base: '0x0', size: '0x4000000', readonly: false, pageLevel: 1 },
      { id: 1, base: '0x100000000', size: '0x40000000', readonly: false, pageLevel: 2 },
      { id: 7, base: '0xfff00000', size: '0x10000', readonly: true, pageLevel: 1 },
      { id: 8, base: '0x80000000', size: '0x1000', readonly: false, pageLevel: 1 },
    ],
    second: 'npt',
    maxPhyAddr: 40,
    features: ['1g-pages', 'amd'],
    policies: { ...DEFAULT_POLICIES, 'page-split': 'lazy' },
  });
});

test('without a machine block there are 64M, EPT, and a current processor', () => {
  assert.deepEqual(plain(programOf('vcpu 0 { read 0 }').machine), {
    slots: [{ id: 0, base: '0x0', size: '0x4000000', readonly: false, pageLevel: 1 }],
    second: 'ept',
    maxPhyAddr: 46,
    features: ['1g-pages', 'execute-only'],
  });
});

test('vCPUs come in the order of their numbers, and hosts after them', () => {
  const { tasks } = programOf('guest k {}\nhost a { zap all }\nvcpu 1 in k { read 0 }\nvcpu 0 { read 0 }');
  assert.deepEqual(
    tasks.map(({ kind, name, guest }) => [kind, name, guest]),
    [
      ['vcpu', '0', undefined],
      ['vcpu', '1', 'k'],
      ['host', 'a', undefined],
    ],
  );
});

test('an access that tells no size is as wide as the code that the guest’s paging is for', () => {
  const { program } = parseScenario(
    'guest s 32-bit { }\nguest p pae { }\nguest k { }\nvcpu 0 in s { read 0 }\nvcpu 1 in p { write 0 }\nvcpu 2 in k { read 0 }\nvcpu 3 { read 0 read.2 0 }',
  );
  const sizes = program?.tasks.map(({ body }) => body.map((each) => each.kind === 'access' && each.size));
  assert.deepEqual(sizes, [[4], [4], [8], [8, 2]]);
});

test('a user access on the line behind a mapping is no attribute of the mapping', () => {
  const { tasks } = programOf('vcpu 0 {\n  map 0 -> 0 4K rw-\n  user read 0\n}');
  assert.deepEqual(plain(tasks[0]!.body[0]), {
    kind: 'map',
    mapping: { ...mapping, gva: '0x0', gpa: '0x0', execute: false },
  });
  assert.equal((tasks[0]!.body[1] as { cpl?: number }).cpl, 3);
});

test('spans cover statements, and of loops and tasks the first line', () => {
  const { tasks, expects } = programOf('vcpu 0 {\n  repeat 2 as i {\n    read 4K +\n      i\n  }\n}\nexpect step > 0');
  const [loop] = tasks[0]!.body;
  assert.ok(loop?.kind === 'repeat');
  assert.deepEqual(tasks[0]!.span, { line: 1, column: 1, endLine: 1, endColumn: 7 });
  assert.deepEqual(loop.span, { line: 2, column: 3, endLine: 2, endColumn: 16 });
  assert.deepEqual(loop.body[0]!.span, { line: 3, column: 5, endLine: 4, endColumn: 8 });
  assert.deepEqual(expects[0]!.span, { line: 7, column: 1, endLine: 7, endColumn: 16 });
});

test('a permission is told from a difference of names', () => {
  const { tasks } = programOf('vcpu 0 { repeat 2 as r { repeat 2 as x { read r-x } } }');
  assert.match(JSON.stringify(plain(tasks)), /"operator":"-"/);
});
