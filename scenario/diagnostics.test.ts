import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Machine } from '../engine/machine.ts';
import { programScope } from '../engine/queries/scope.ts';
import { parseScenario } from './index.ts';
import { FUNCTIONS, VALUES } from './names.ts';

/** `line:column severity message`, one for each diagnostic. */
const said = (text: string): string[] =>
  parseScenario(text).diagnostics.map(
    ({ severity, message, span }) => `${span.line}:${span.column} ${severity}: ${message}`,
  );

const REGISTERS = 'cr0, cr3, cr4, efer, rflags, pkru, cpl';
const run = '\nvcpu 0 { read 0 }';
const machine = (items: string): string => `machine {\n${items}\n}${run}`;
const guest = (items: string): string => `guest k {\n${items}\n}${run}`;
const vcpu = (body: string): string => `vcpu 0 {\n${body}\n}`;
const host = (body: string): string => `host h {\n${body}\n}`;

const CASES: readonly (readonly [string, ...string[]])[] = [
  // machine
  [
    `machine {\nmemory 0 +4K }\nmachine { }${run}`,
    '3:1 error: a second machine: the first is on line 1, and a scenario has one',
  ],
  [`machine arm64 { memory 0 +4K }${run}`, '1:1 error: machine arm64 is not modelled yet; there is: x86-64'],
  [
    `machine { }${run}`,
    '1:1 warning: a machine without memory: every access will be MMIO; add a line like memory 0 +64M',
  ],
  [machine('memory 0 +64M\nmemory 4K +4K'), '3:1 error: slot 1 (gpa 0x1000 +4K) overlaps slot 0 (gpa 0x0 +64M)'],
  [machine('memory 0x10 +4K'), '2:1 error: slot 0: start 0x10 is not a multiple of 4K'],
  [machine('memory 0 +10'), '2:1 error: slot 0: size 0xa is not a multiple of 4K'],
  [machine('memory 0 +0'), '2:1 error: slot 0: size must be at least 4K'],
  [machine('memory 0 +4K slot 1\nmemory 1M +4K slot 1'), '3:1 error: slot 1 is given twice'],
  [machine('memory 0 +4K slot 99999'), '2:19 error: slot 99999 is out of range: 0 … 32763'],
  [machine('memory 0 +4K huge 8M'), '2:14 error: the host has no pages of 8M: huge 2M or huge 1G'],
  [machine('memory 0 +4K read-only read-only'), '2:24 error: given twice for one slot'],
  [machine('memory (1 + x) +4K'), '2:8 error: the start of a slot must be a constant: unknown name x'],
  [machine('memory 0 +4K\nmaxphyaddr 53'), '3:12 error: maxphyaddr 53 is out of range: 32 … 52'],
  [machine('memory 0 +4K\nmaxphyaddr 40\nmaxphyaddr 40'), '4:1 error: given twice: it is on line 3 already'],
  [
    machine('memory 0 +4K\ncpu 1g-page'),
    '3:5 error: unknown processor feature 1g-page (did you mean 1g-pages?): 1g-pages, execute-only, l1tf, or none',
  ],
  [
    machine('memory 0 +4K\ncpu l1tf\nmaxphyaddr 47'),
    '3:1 error: cpu l1tf: KVM takes no processor of 47 physical address bits for one with it: maxphyaddr 46 at most',
  ],
  [
    machine('memory 0 +4K\ncpu l1tf\nsecond-stage tdp npt 4-level'),
    '3:1 error: cpu l1tf: it is a bug of Intel’s processors, which have no NPT',
  ],
  [machine('memory 0 +4K\ncpu none 1g-pages'), '3:5 error: none stands alone: cpu none'],
  [
    'guest k 6-level { }\nvcpu 0 in k { }',
    '1:1 error: unknown paging 6-level; there are 32-bit, pae, 4-level, 5-level',
  ],
  [
    'guest k pae {\n  map 0xffff_f000 -> 0 +8K\n}\nvcpu 0 in k { }',
    '2:7 error: gva 0xfffff000 +8K ends beyond 4G, which pae paging does not reach',
  ],
  [
    'guest k 32-bit {\n  map 0 -> 0 2M\n}\nvcpu 0 in k { }',
    '2:14 error: there are no pages of 2M: 4K, 4M; for a range write +2M',
  ],
  [
    'guest k 32-bit {\n  entry 0 level 1 = 1 << 32\n}\nvcpu 0 in k { }',
    '2:21 error: 0x100000000 has more than the 32 bits of an entry of 32-bit paging',
  ],
  [
    'guest k pae { }\nvcpu 0 in k {\n  entry 0 level 4 = 1\n}',
    '3:17 error: level 4 is out of range: 1 (PTE) … 3 (PDPTE)',
  ],
  [
    machine('memory 0 +4K\nsecond-stage tdp ept 3-level'),
    '3:1 error: second-stage tdp ept 3-level is not modelled yet; there are: tdp ept 4-level, tdp ept 5-level, tdp npt 4-level, tdp npt 5-level, shadow',
  ],
  [
    machine('memory 0 +4K\nsecond-stage stage-2'),
    '3:1 error: second-stage stage-2 is not modelled yet; there are: tdp ept 4-level, tdp ept 5-level, tdp npt 4-level, tdp npt 5-level, shadow',
  ],
  [
    machine('memory 0 +4K\nsecond-stage foo'),
    '3:1 error: unknown second stage foo; there are: tdp ept 4-level, tdp ept 5-level, tdp npt 4-level, tdp npt 5-level, shadow',
  ],
  [
    machine('memory 0 +4K\npolicy roots = keep'),
    '3:1 error: policy roots cannot be keep; it is today, before or posted',
  ],
  [
    machine('memory 0 +4K\npolicy root = today'),
    '3:1 error: unknown policy root; there are page-split, roots, quadrant, conversion, attribute-zap, attribute-errors, guest-memfd, nx-huge-pages, tdp-mmu',
  ],
  // guest
  [`machine { memory 0 +4K slot 0 }\nguest k { }\nguest k { }${run}`, '3:1 error: guest k is on line 2 already'],
  [`guest cr3 { }${run}`, '1:1 error: cr3 has a meaning in expressions already: call the guest something else'],
  [guest('map 0x400010 -> 0'), '2:5 error: gva 0x400010 is not a multiple of 4K'],
  [guest('map 0x400000 -> 0x10'), '2:17 error: gpa 0x10 is not a multiple of 4K'],
  [guest('map 0x400000 -> 0 +100'), '2:20 error: size 100 is not a multiple of 4K, at least 4K'],
  [guest('map 0x400000 -> 0 8M'), '2:19 error: there are no pages of 8M: 4K, 2M, 1G; for a range write +8M'],
  [
    guest('map 0x401000 -> 0 2M'),
    '2:5 error: gva 0x401000 is not a multiple of 2M, so that no 2M page fits; for smaller pages write +2M',
  ],
  [
    guest('map 0x400000 -> 0x1000 2M'),
    '2:17 error: gpa 0x1000 is not a multiple of 2M, so that no 2M page fits; for smaller pages write +2M',
  ],
  [
    guest('map 0x8000_0000_0000 -> 0'),
    '2:5 error: gva 0x800000000000 is not canonical; 4-level paging translates 0 … 0x7fffffffffff and 0xffff800000000000 …',
  ],
  [
    guest('map 0x7fff_ffff_f000 -> 0 +8K'),
    '2:5 error: gva 0x7ffffffff000 +8K is not canonical; 4-level paging translates 0 … 0x7fffffffffff and 0xffff800000000000 …',
  ],
  [guest('map 0 -> 0 +32G 4K'), '2:13 error: 32G in pages of 4K are 8388608 entries; at most 4194304 for one map'],
  [
    guest('map 0 -> 0x4000_0000_0000'),
    '2:10 error: gpa 0x400000000000 +4K ends beyond MAXPHYADDR 46; a malformed entry is written as entry … level 1 = …',
  ],
  [guest('map 0 -> 0x1000_0000'), '2:10 warning: gpa 0x10000000 is in no memory slot: accesses to it will be MMIO'],
  [guest('map 0 -> 0 +8K\nmap 4K -> 0 +8K'), '3:1 warning: gva 0x1000 +4K is mapped on line 2 already; this line wins'],
  [guest('map 0 -> 0 4K rw- r--'), '2:19 error: permissions given twice'],
  [guest('map 0 -> 0 4K user supervisor'), '2:20 error: user or supervisor given twice'],
  [guest('map 0 -> 0 4K key 16'), '2:15 error: protection key 16 is out of range: 0 … 15'],
  [guest('map x -> 0'), '2:5 error: a number, or a calculation in parentheses is missing: there is ‘x’'],
  [guest('entry 0 level 5 = 0'), '2:15 error: level 5 is out of range: 1 (PTE) … 4 (PML4E)'],
  [guest('entry 0 level 1 = step'), '2:19 error: the value of an entry must be a constant: unknown name step'],
  [guest('tables at 1G'), '2:1 error: tables at 0x40000000: there is no memory slot'],
  [
    guest('read 0'),
    '2:1 error: read, write and fetch: a guest block holds tables at, map and entry; this belongs in a vcpu or host block',
  ],
  [`machine { memory 0 +64M\ncpu none }\n${guest('map 0 -> 0 1G')}`, '4:12 error: pages of 1G need cpu 1g-pages'],
  // tasks
  ['', '1:1 warning: nothing to run: add a vcpu or a host block'],
  ['vcpu 0 in kernal { }\nguest kernel { }', '1:11 error: there is no guest kernal; guests: kernel'],
  ['vcpu 0 in k { }', '1:11 error: there is no guest k; guests: none; define one as guest NAME { … }'],
  ['vcpu 0 { }\nvcpu 0 { }', '2:1 error: vcpu 0 is on line 1 already'],
  ['vcpu 1 { }', '1:1 error: vcpu 1: vCPUs are numbered from 0 without gaps, here up to 0'],
  ['host a { zap all }\nhost a { zap all }', '2:1 error: host a is on line 1 already'],
  [vcpu('zap all'), '2:1 error: zap: only the host can do this; it belongs in a host block'],
  [host('fetch 0'), '2:1 error: fetch: the host reads and writes memory, private or shared, and no more'],
  [host('protect 0 +4K r--'), '2:1 error: protect: only a vCPU can do this; it belongs in a vcpu block'],
  [vcpu('cr1 = 0'), `2:1 error: unknown register cr1 (did you mean cr0?): ${REGISTERS}`],
  [vcpu('cr0.wq = 0'), '2:1 error: cr0 has no bit wq (did you mean wp?): pe, wp, pg'],
  [vcpu('cr3.wp = 0'), '2:1 error: cr3 has no named bits: set it as a whole'],
  [vcpu('cr0.wp = 2'), '2:10 error: cr0.wp is one bit: 0 or 1'],
  [vcpu('read.3 0'), '2:1 error: read.3: an access has 1, 2, 4 or 8 bytes'],
  [vcpu('read 0 = 1'), '2:10 error: a read stores nothing: only write takes = VALUE'],
  [vcpu('repeat -1 { read 0 }'), '2:8 error: repeat -1: a count is 0 or more'],
  [vcpu('repeat 2 as cr3 { read 0 }'), '2:13 error: cr3 is a register’s name: call the loop variable something else'],
  [vcpu('loop { }'), '2:1 warning: a loop without statements never ends and does nothing'],
  [
    vcpu('unmap 0x8000_0000_0000 +4K'),
    '2:7 error: gva 0x800000000000 is not canonical; 4-level paging translates 0 … 0x7fffffffffff and 0xffff800000000000 …',
  ],
  [vcpu('protect 0 +4K user'), '2:1 error: protect needs the new permissions: r--, rw-, r-x or rwx'],
  [
    vcpu('protect 0 +4K r-- global'),
    '2:1 error: protect changes permissions, and user or supervisor; global stays as it was mapped',
  ],
  [host('delete slot 3'), '2:13 error: there is no slot 3; slots: 0'],
  [host('add slot 1 at 0x10 +4K'), '2:15 error: gpa 0x10 is not a multiple of 4K'],
  [
    host('poke 0x1_0000_0000_0000 level 1 = 0'),
    '2:6 error: gpa 0x1000000000000 is beyond the 48 bits of 4-level tables',
  ],
  // names in expressions
  [
    `${vcpu('')}\nexpect faults.secnd == 3`,
    '4:8 warning: unknown counter faults.secnd (did you mean faults.second?); there are: faults.guest, faults.second, faults.misconfig, faults.mmio, faults.fixed, faults.spurious, faults.fast, faults.retried, faults.read_only, faults.rmp, faults.vc',
  ],
  [
    `${vcpu('')}\nexpect acceses == 3`,
    '4:8 warning: unknown name acceses (did you mean accesses?): neither a counter, a register, a guest nor a loop variable',
  ],
  [`${vcpu('')}\nexpect vcpu[1].cr0.wp`, '4:8 warning: there is no vcpu 1: there is only vcpu 0'],
  [
    `${vcpu('')}\nexpect vcpu[0]`,
    '4:8 warning: vcpu[…] needs a register: .cr0, .cr3, .cr4, .efer, .rflags, .pkru, .cpl',
  ],
  [`${vcpu('')}\nexpect cr0.wq`, '4:8 warning: cr0 has no bit wq (did you mean wp?): pe, wp, pg'],
  [
    `${vcpu('')}\nexpect lvl(0) == 1`,
    '4:8 warning: unknown function lvl(); functions: u8, u16, u32, u64, pte, gpa, hpa, spte, is_private, level',
  ],
  [`${vcpu('')}\nexpect level(0, 1) == 1`, '4:8 warning: level() takes 1 argument, not 2'],
  [
    vcpu('repeat 2 as i { read i }\nread i'),
    '3:6 warning: unknown name i: neither a counter, a register, a guest nor a loop variable',
  ],
  // syntax
  [vcpu('raed 0'), '2:1 error: ‘raed’ begins no statement (did you mean read?)'],
  [
    vcpu('+'),
    '2:1 error: ‘+’ begins nothing here; here stand read, write, fetch, user, supervisor, implicit, invlpg, invpcid, invept, async-pf, enter, smm, repeat, loop, map, unmap, protect, entry, expect, wait, private, shared, convert, pvalidate, accept, rmpadjust, vmpl, add, delete, move, log, zap, migrate, swap-out, recover-nx-huge-pages, poke, punch, rmpupdate, inject, and registers',
  ],
  [guest('foo'), '2:1 error: ‘foo’ begins no statement'],
  [
    'vpcu 0 { }',
    '1:1 error: ‘vpcu’ begins nothing (did you mean vcpu?); there are machine, guest, nested, vcpu, host, expect',
  ],
  ['read 0', '1:1 error: ‘read’ belongs in a vcpu block'],
  ['cr3 = 0', '1:1 error: ‘cr3’ belongs in a vcpu block'],
  ['}', '1:1 error: ‘}’ closes nothing: no block is open'],
  ['vcpu 0 {', '1:9 error: a block is not closed: ‘}’ is missing'],
  [vcpu('wrtie 0'), '2:1 error: ‘wrtie’ begins no statement (did you mean write?)'],
  [vcpu('map 0 -> 0 4K rw'), '2:15 error: permissions are written r--, rw-, r-x or rwx'],
  [vcpu('read'), '3:1 error: a number, a name or ‘(’ is missing: there is ‘}’'],
  [vcpu('wait accesses > 1'), '2:6 error: ‘until’ is missing: there is ‘accesses’'],
  [vcpu('read 0 $'), '2:8 error: ‘$’ means nothing here'],
  [host('zap'), '3:1 error: all, or a start and a size such as 0 +2M is missing: there is ‘}’'],
  [vcpu('read 0x'), '2:6 error: ‘0x’ is no number: write 4096, 0x1000, 0x1_0000 or 4K (suffixes K, M, G, T)'],
  [`expect ${'('.repeat(100)}`, '1:40 error: nested deeper than 32 levels'],
  [`expect 1${'+1'.repeat(501)}`, '1:1009 error: an expression with more than 500 operators: split it up'],
];
for (const [text, ...expected] of CASES) test(text.slice(0, 80), () => assert.deepEqual(said(text), expected));

test('there is no program beside an error, and one beside a warning', () => {
  assert.equal('program' in parseScenario(vcpu('zap all')), false);
  assert.equal('program' in parseScenario(vcpu('loop { }')), true);
});

test('slots that a host adds or moves are memory', () => {
  assert.deepEqual(said(`${guest('map 0 -> 0x4000_0000')}\nhost h { add slot 1 at 0x4000_0000 +4K }`), []);
  assert.deepEqual(said(`${guest('map 0 -> 0x4000_0000')}\nhost h { move slot 0 to 0x4000_0000 }`), []);
});

test('every name that counts as known means something when the scenario runs', () => {
  const { program } = parseScenario('vcpu 0 { read 0 }');
  const scope = programScope(new Machine(program!));
  // These are a task’s.
  for (const name of VALUES.filter((value) => !['cr2', 'loaded', 'error_code'].includes(value)))
    assert.notEqual(scope.name(name.split('.')), undefined, name);
  const unknown = Object.keys(FUNCTIONS).filter((name) => scope.call!(name, [0n]) === undefined);
  // With paging off a guest-virtual address has no entry.
  assert.deepEqual(unknown, []);
});
