import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Recording, ROLE_IN_TEXT } from '../../engine/history/recording.ts';
import { TRACEPOINTS } from '../../engine/history/tracepoints.ts';
import { bytesSource } from './source.ts';
import { readText } from './text.ts';

const read = (text: string): Recording => readText(bytesSource(new TextEncoder().encode(text)));

/** An event's known fields: `name=value`, hexadecimal unless negative, and a role's unknown bits. */
function fields(recording: Recording, index = 0): string {
  const { tracepoint } = recording.shape(index);
  return tracepoint.fields
    .flatMap(({ name }, i) => {
      if (!recording.known(index, i)) return [];
      const value = recording.value(index, i);
      return [`${name}=${value < 0n ? value : value.toString(16)}`];
    })
    .join(' ');
}

/** What the kernel prints, and what is to be read from it. */
const texts: readonly (readonly [event: string, text: string, fields: string])[] = [
  [
    'kvm_mmu_get_page',
    'sp gen 3 gfn 1fffff l4 8-byte q0 direct wux nxe ad root 17 sync new',
    'mmu_valid_gen=3 gfn=1fffff role=1784 root_count=11 unsync=0 created=1',
  ],
  [
    'kvm_mmu_get_page',
    'sp gen 0 gfn 10 l1 4-byte q3 w-- invalid !nxe !ad root 0 unsync existing',
    'mmu_valid_gen=0 gfn=10 role=10a71 root_count=0 unsync=1 created=0',
  ],
  [
    'kvm_mmu_sync_page',
    'sp gen 1 gfn 2 l2 4-byte q1 --- !nxe ad root 1 sync\0',
    'mmu_valid_gen=1 gfn=2 role=32 root_count=1 unsync=0',
  ],
  [
    'kvm_mmu_unsync_page',
    'sp gen 1 gfn 2 l1 8-byte q0 -ux nxe ad root 1 unsync',
    'mmu_valid_gen=1 gfn=2 role=1501 root_count=1 unsync=1',
  ],
  [
    'kvm_mmu_prepare_zap_page',
    'sp gen 0 gfn 0 l5 8-byte q0 direct wux nxe ad root 1 sync',
    'mmu_valid_gen=0 gfn=0 role=1785 root_count=1 unsync=0',
  ],
  ['kvm_mmu_prepare_zap_page', '4 q0 wux !pae nxe wp root 2 sync', 'role=3704 root_count=2 unsync=0'],
  [
    'kvm_mmu_get_page',
    'existing sp gfn 1fff 4 q2 direct wux invalid pae !nxe !wp smep smap smm root 1 unsync',
    'gfn=1fff role=100cfc4 root_count=1 unsync=1 created=0',
  ],
  [
    'kvm_mmu_get_page',
    '[FAILED TO PARSE] mmu_valid_gen=0 gfn=8191 role=14084 root_count=0 unsync=0 created=1',
    'mmu_valid_gen=0 gfn=1fff role=3704 root_count=0 unsync=0 created=1',
  ],
  ['kvm_mmu_zap_all_fast', 'kvm-mmu-valid-gen 1 used_pages 2f', 'mmu_valid_gen=1 mmu_used_pages=2f'],
  [
    'kvm_mmu_set_spte',
    'gfn 30201 spte 86000001ea6f5e67 (rwxu) level 1 at 15c66a008',
    'gfn=30201 spte=86000001ea6f5e67 sptep=15c66a008 level=1 r=1 x=1 u=1',
  ],
  ['kvm_mmu_set_spte', 'gfn 1 spte 0 (---) level 2 at 8', 'gfn=1 spte=0 sptep=8 level=2 r=0 x=0 u=-1'],
  ['kvm_mmu_set_spte', 'gfn 1 spte 5 (r---) level 2 at 8', 'gfn=1 spte=5 sptep=8 level=2 r=1 x=0 u=0'],
  [
    'kvm_mmu_spte_requested',
    'gfn ffffffffff pfn 8000000000000000 level 3',
    'gfn=ffffffffff pfn=8000000000000000 level=3',
  ],
  [
    'kvm_tdp_mmu_spte_changed',
    'as id 1 gfn 12345 level 2 old_spte 5a0 new_spte 60000001234009f7',
    'gfn=12345 old_spte=5a0 new_spte=60000001234009f7 level=2 as_id=1',
  ],
  ['kvm_mmu_split_huge_page', 'gfn 200 spte 800000004 level 2 errno -12', 'gfn=200 spte=800000004 level=2 errno=-12'],
  [
    'fast_page_fault',
    'vcpu 1 gva 7f8000 error_code P|W|U sptep 00000000b5c9d2a1 old 0x600000000abc77 new 600000000abc79 spurious 0 fixed 1',
    'vcpu_id=1 cr2_or_gpa=7f8000 error_code=7 old_spte=600000000abc77 new_spte=600000000abc79 spurious=0 fixed=1',
  ],
  [
    'fast_page_fault',
    'vcpu 0 gva 1000 error_code RSVD|PK|0x300000000 sptep (null) old 0x1 new 2 spurious 1 fixed 0',
    'vcpu_id=0 cr2_or_gpa=1000 error_code=300000028 sptep=0 old_spte=1 new_spte=2 spurious=1 fixed=0',
  ],
  [
    'fast_page_fault',
    'vcpu 0 gva 1000 error_code  sptep 1 old 0x1 new 2 spurious 1 fixed 0',
    'vcpu_id=0 cr2_or_gpa=1000 error_code=0 old_spte=1 new_spte=2 spurious=1 fixed=0',
  ],
  ['mark_mmio_spte', 'sptep:00000000b5c9d2a1 gfn fee00 access 6 gen 1c', 'gfn=fee00 access=6 gen=1c'],
  [
    'check_mmio_spte',
    'spte ffff0000fee0060f kvm_gen 1c spte-gen 1a valid 0',
    'kvm_gen=1c spte_gen=1a spte=ffff0000fee0060f',
  ],
  ['handle_mmio_page_fault', 'addr:fee00300 gfn fee00 access 7', 'addr=fee00300 gfn=fee00 access=7'],
  ['kvm_mmu_pagetable_walk', 'addr ffff888000000000 pferr 13 P|W|F', 'addr=ffff888000000000 pferr=13'],
  ['kvm_mmu_paging_element', 'pte 8000000030220067 level 4', 'pte=8000000030220067 level=4'],
  ['kvm_mmu_set_accessed_bit', 'gpa 1fff000', 'gpa=1fff000'],
  ['kvm_mmu_set_dirty_bit', 'gpa 1ffc000', 'gpa=1ffc000'],
  ['kvm_mmu_walker_error', 'pferr 9 P|RSVD', 'pferr=9'],
  [
    'kvm_page_fault',
    'vcpu 2 rip 0xffffffff81000000 address 0x00000000fee00300 error_code 0x200000006',
    'vcpu_id=2 guest_rip=ffffffff81000000 fault_address=fee00300 error_code=200000006',
  ],
  ['kvm_page_fault', 'address fee00300 error_code 6', 'fault_address=fee00300 error_code=6'],
  [
    'kvm_entry',
    'vcpu 0, rip 0xfff0 intr_info 0x80000b0e error_code 0x00000004[immediate exit]',
    'vcpu_id=0 rip=fff0 immediate_exit=1 intr_info=80000b0e error_code=4',
  ],
  [
    'kvm_entry',
    'vcpu 0, rip 0xfff0 intr_info 0x00000000 error_code 0x00000000',
    'vcpu_id=0 rip=fff0 immediate_exit=0 intr_info=0 error_code=0',
  ],
  ['kvm_entry', 'vcpu 3, rip 0xfff0', 'vcpu_id=3 rip=fff0'],
  ['kvm_entry', ' vcpu 3 rip 0xfff0', 'vcpu_id=3 rip=fff0'],
  ['kvm_entry', 'vcpu 3', 'vcpu_id=3'],
  [
    'kvm_exit',
    'vcpu 0 reason EPT_VIOLATION rip 0xffffffff8103e4ab info1 0x0000000000000182 info2 0x0000000080000b0e intr_info 0x00000000 error_code 0x00000000 requests 0x0000000000000100',
    'exit_reason=30 guest_rip=ffffffff8103e4ab isa=1 info1=182 info2=80000b0e intr_info=0 error_code=0 vcpu_id=0 requests=100',
  ],
  [
    'kvm_exit',
    'vcpu 0 reason npf rip 0x7 info1 0x0000000200000004 info2 0x00000000fee00300 intr_info 0x00000000 error_code 0x00000000',
    'exit_reason=400 guest_rip=7 isa=2 info1=200000004 info2=fee00300 intr_info=0 error_code=0 vcpu_id=0',
  ],
  [
    'kvm_exit',
    'vcpu 0 reason PF excp rip 0x7 info1 0x4 info2 0x8 intr_info 0x0 error_code 0x0',
    'exit_reason=4e guest_rip=7 isa=2 info1=4 info2=8 intr_info=0 error_code=0 vcpu_id=0',
  ],
  [
    'kvm_exit',
    'vcpu 0 reason INVALID_STATE FAILED_VMENTRY rip 0x7 info1 0x4 info2 0x8 intr_info 0x0 error_code 0x0',
    'exit_reason=80000021 guest_rip=7 isa=1 info1=4 info2=8 intr_info=0 error_code=0 vcpu_id=0',
  ],
  [
    'kvm_exit',
    'vcpu 0 reason A_NEW_ONE rip 0x7 info1 0x4 info2 0x8 intr_info 0x0 error_code 0x0',
    'guest_rip=7 info1=4 info2=8 intr_info=0 error_code=0 vcpu_id=0',
  ],
  ['kvm_exit', 'reason EXIT_NPF rip 0x7 info 4 fee00300', 'exit_reason=400 guest_rip=7 isa=2 info1=4 info2=fee00300'],
  [
    'kvm_exit',
    'reason EPT_MISCONFIG rip 0xffffffff81000007 do_idle+0x17 info 0 0',
    'exit_reason=31 guest_rip=ffffffff81000007 isa=1 info1=0 info2=0',
  ],
  ['kvm_exit', 'reason UNKNOWN (77) rip 0x7 info 0 0', 'exit_reason=4d guest_rip=7 info1=0 info2=0'],
  ['kvm_inj_exception', '#PF (0x15)', 'exception=e has_error=1 error_code=15 reinjected=0'],
  ['kvm_inj_exception', '#UD [reinjected]', 'exception=6 has_error=0 reinjected=1'],
  [
    'kvm_inj_exception',
    '[FAILED TO PARSE] exception=14 has_error=1 error_code=7 reinjected=0',
    'exception=e has_error=1 error_code=7 reinjected=0',
  ],
  ['kvm_mmio', 'mmio unsatisfied-read len 4 gpa 0xfee00300 val 0x0', 'type=0 len=4 gpa=fee00300 val=0'],
  [
    'kvm_mmio',
    'mmio write len 8 gpa 0x20000000 val 0xffffffffffffffff',
    'type=2 len=8 gpa=20000000 val=ffffffffffffffff',
  ],
  [
    'kvm_rmp_fault',
    'vcpu 1 gpa 0000000012345000 pfn 0x1234 error_code 0x400000004 rmp_level 2 psmash_ret -22',
    'vcpu_id=1 gpa=12345000 pfn=1234 error_code=400000004 rmp_level=2 psmash_ret=-22',
  ],
  ['kvm_vm_set_mem_attributes', '0x00000000000100 -- 0x00000000000200 [0x8]', 'start=100 end=200 attr=8'],
  [
    'kvm_unmap_hva_range',
    'mmu notifier unmap range: 0x007f6487900000 -- 0x007f6488100000',
    'start=7f6487900000 end=7f6488100000',
  ],
  ['kvm_age_hva', 'mmu notifier age hva: 0x007f6487900000 -- 0x007f6487901000', 'start=7f6487900000 end=7f6487901000'],
  ['kvm_set_spte_hva', 'mmu notifier set pte hva: 0x007f6487900000', 'hva=7f6487900000'],
];

test('every tracepoint’s text is read back, of kernels old and new and of trace-cmd’s own words', () => {
  for (const [event, text, wanted] of texts) {
    const recording = read(`  qemu-7 [001] ..... 1.5: ${event}: ${text}\n`);
    assert.deepEqual(recording.problems, [], `${event}: ${text}`);
    assert.equal(recording.shape(0).tracepoint.name, event);
    assert.equal(fields(recording), wanted, text);
  }
  assert.deepEqual(
    TRACEPOINTS.filter(({ name }) => !texts.some(([event]) => event === name)).map(({ name }) => name),
    [],
  );
});

test('which bits of a role are known depends on who printed it', () => {
  const known = (text: string): number =>
    read(` a-1 [000] 1.0: kvm_mmu_prepare_zap_page: ${text}\n`).shape(0).roleKnown;
  assert.equal(known('sp gen 0 gfn 0 l5 8-byte q0 direct wux nxe ad root 1 sync'), ROLE_IN_TEXT);
  assert.equal(known('4 q0 wux !pae nxe wp root 2 sync'), 0xff00ffef);
  assert.equal(known('[FAILED TO PARSE] gfn=1 role=2'), 0xffffffef);
});

test('flags become bits again', () => {
  for (const [flags, bits] of Object.entries({
    P: 1,
    W: 2,
    U: 4,
    RSVD: 8,
    F: 16,
    PK: 32,
    SS: 64,
    SGX: 32768,
    'P|W|U|F': 23,
    0: 0,
  })) {
    const text = `vcpu 0 gva 1 error_code ${flags} sptep 1 old 0x1 new 2 spurious 1 fixed 0`;
    const recording = read(` a-1 [000] 1.0: fast_page_fault: ${text}\n`);
    assert.equal(recording.lo(0, 2), bits, flags);
  }
});

test('the heads of a line, of each tool', () => {
  const rest = 'kvm_mmu_set_accessed_bit: gpa 1';
  for (const [line, source, cpu, pid, comm] of [
    [`  CPU 0/KVM-12345   [002] d..1.  100.000001: ${rest}`, 'tracefs text', 2, 12345, 'CPU 0/KVM'],
    [`            qemu-12 ( 10) [002] .....  100.000001: ${rest}`, 'tracefs text', 2, 12, 'qemu'],
    [`           <...>-4194304 [255]  100.000001: ${rest}`, 'tracefs text', 255, 4194304, '<...>'],
    [
      `cpus=4\n   a [1] b-7 [003]   100.000001: ${rest.replace(': ', ':             ')}`,
      'trace-cmd report',
      3,
      7,
      'a [1] b',
    ],
    [`cpus=4\nbuffer:  a-b-c-7     [003] d..2.   100.000001123: ${rest}`, 'trace-cmd report', 3, 7, 'a-b-c'],
    [`        qemu 29542 [001] 33118.847467:     kvmmmu:${rest}`, 'perf script', 1, 29542, 'qemu'],
    [` CPU 0/KVM  29541/29542 [001] 33118.847467:     kvmmmu:${rest}`, 'perf script', 1, 29542, 'CPU 0/KVM'],
  ] as const) {
    const recording = read(`${line}\r\n`);
    assert.equal(recording.length, 1, line);
    assert.deepEqual(recording.problems, [], line);
    assert.deepEqual(
      [recording.source, recording.cpu(0), recording.pid(0), recording.comm(recording.pid(0))],
      [source, cpu, pid, comm],
    );
    assert.equal(recording.value(0, 0), 1n);
  }
});

test('times: micro- and nanoseconds, beyond 2⁵³, and clocks that count something else', () => {
  const times = (...written: string[]): [base: bigint, ...times: number[]] => {
    const recording = read(written.map((time) => ` a-1 [000] ${time}: kvm_mmu_set_dirty_bit: gpa 1\n`).join(''));
    return [recording.base, ...Array.from({ length: recording.length }, (_, i) => recording.time(i))];
  };
  assert.deepEqual(times('33118.847467', '33119.000001'), [33118847467000n, 0, 152534000]);
  assert.deepEqual(times('99999999.123456789', '99999999.123456790'), [99999999123456789n, 0, 1]);
  assert.deepEqual(times('18446744073709551', '18446744073709559'), [18446744073709551n, 0, 8]);
  const counted = read(' a-1 [000] 7: kvm_mmu_set_dirty_bit: gpa 1\n');
  assert.match(counted.problems.join(), /counts something else/);
});

test('losses, events that are not understood, and lines that are none', () => {
  const recording = read(
    [
      '# tracer: nop',
      '# entries-in-buffer/entries-written: 6/106   #P:2',
      ' a-1 [000] ..... 1.0: kvm_pio: pio_write at 0x4b',
      ' a-1 [000] ..... 1.1: kvm_mmu_set_dirty_bit: gpa 1',
      'CPU:1 [LOST 23 EVENTS]',
      ' a-1 [000] ..... 1.2: kvm_mmu_set_dirty_bit: gpa 2',
      ' a-1 [001] ..... 1.3: kvm_mmu_set_dirty_bit: gpa 3',
      'CPU:0 [EVENTS DROPPED]',
      'CPU:0 [5 EVENTS DROPPED]',
      ' => something else',
      ' a-1 [000] ..... 1.4: kvm_mmu_set_dirty_bit: gpa 4',
      ' a-1 [000] ..... 1.5: kvm_mmu_set_dirty_bit: gap 5',
      ' a-1 [000] ..... 1.6: kvm_pio: pio_write at 0x4b',
    ].join('\n'),
  );
  assert.equal(recording.length, 4);
  assert.deepEqual([...recording.unknown], [['kvm_pio', 2]]);
  const losses = recording.losses.map(({ cpu, count, beforeIndex }) => [cpu, count, beforeIndex]);
  assert.deepEqual(losses, [
    [undefined, 100, 0],
    [1, 23, 2],
    [0, undefined, 3],
    [0, 5, 3],
  ]);
  assert.match(recording.problems.join('\n'), /1 lines of kvm_mmu_set_dirty_bit .* line 12: " gap 5"/);
  assert.match(recording.problems.join('\n'), /1 lines are no events; line 10: " => something else"/);
});

test('lines out of order are put in order, and said', () => {
  const recording = read(
    [3, 1, 2].map((time) => ` a-1 [000] ${time}.0: kvm_mmu_set_dirty_bit: gpa ${time}\n`).join(''),
  );
  assert.deepEqual(
    [0, 1, 2].map((i) => recording.lo(i, 0)),
    [1, 2, 3],
  );
  assert.match(recording.problems.join(), /2 lines stand behind later ones/);
});

test('a block’s end may cut a line anywhere; a line without end does not fill memory', () => {
  const lines = Array.from(
    { length: 60_000 },
    (_, i) => `  qemu-7     [001] .....  ${i}.000001: kvm_mmu_paging_element: pte ${i.toString(16)} level 1`,
  );
  const recording = read(lines.join('\n'));
  assert.equal(recording.length, lines.length);
  for (let i = 0; i < recording.length; i++) if (recording.lo(i, 0) !== i) assert.fail(`line ${i}`);
  const endless = read(
    `${' a-1 [000] 1.0: kvm_mmu_set_dirty_bit: gpa 1\n'}${'x'.repeat(6 << 20)}\n a-1 [000] 2.0: kvm_mmu_set_dirty_bit: gpa 2\n`,
  );
  assert.equal(endless.length, 2);
  assert.match(endless.problems.join(), /are no events; line 2: "xxx/);
});
