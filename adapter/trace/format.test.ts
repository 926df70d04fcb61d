import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TRACEPOINTS } from '../../engine/history/tracepoints.ts';
import { TraceError } from './errors.ts';
import { eventPlan, parseFormat } from './format.ts';

const FAST = `name: fast_page_fault
ID: 122
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:int vcpu_id;\toffset:8;\tsize:4;\tsigned:1;
\tfield:gpa_t cr2_or_gpa;\toffset:16;\tsize:8;\tsigned:0;
\tfield:u32 error_code;\toffset:24;\tsize:4;\tsigned:0;
\tfield:u64 * sptep;\toffset:32;\tsize:8;\tsigned:0;
\tfield:u64 old_spte;\toffset:40;\tsize:8;\tsigned:0;
\tfield:u64 new_spte;\toffset:48;\tsize:8;\tsigned:0;
\tfield:int ret;\toffset:56;\tsize:4;\tsigned:1;
\tfield:__u8 insn[15];\toffset:60;\tsize:15;\tsigned:0;

print fmt: "vcpu %d gva %llx error_code %s sptep %p old %#llx new %llx spurious %d fixed %d", REC->vcpu_id, REC->cr2_or_gpa, __print_flags(REC->error_code, "|", { 1, "P" }), REC->sptep, REC->old_spte, REC->new_spte, REC->ret == 6, REC->ret == 5
`;

test('a format tells id, name and fields, pointers and arrays among them', () => {
  const format = parseFormat(FAST, 'kvmmmu');
  assert.equal(format.id, 122);
  assert.equal(format.name, 'fast_page_fault');
  assert.equal(format.fields.length, 12);
  assert.deepEqual(
    format.fields.find(({ name }) => name === 'sptep'),
    {
      name: 'sptep',
      type: 'u64 *',
      offset: 32,
      size: 8,
      signed: false,
      array: false,
    },
  );
  assert.equal(format.fields.find(({ name }) => name === 'insn')?.array, true);
});

test('a plan has what the kernel has, at its sizes; the numbers of RET_PF_* are those that it prints', () => {
  const plan = eventPlan(parseFormat(FAST, 'kvmmmu'))!;
  const { fields } = TRACEPOINTS[plan.kind]!;
  const named = Object.fromEntries(plan.fields.map((each) => [fields[each.field]!.name, each]));
  assert.deepEqual(
    Object.keys(named),
    fields.map(({ name }) => name),
  );
  assert.equal(named.spurious!.equals, 6);
  assert.equal(named.fixed!.equals, 5);
  // 32 bits in this kernel, 64 in others.
  assert.equal((plan.wide >> named.error_code!.field) & 1, 0);
  assert.equal(plan.bytes, 60);
  const unnamed = eventPlan(parseFormat(FAST.replace('REC->ret == 6', 'REC->ret == RET_PF_SPURIOUS')))!;
  assert.equal(unnamed.fields.length, fields.length - 2);
});

test('fields that are missing, renamed or arrays are left out; another system’s event of the name is another event', () => {
  const renamed = eventPlan(
    parseFormat(FAST.replace('gpa_t cr2_or_gpa', 'gva_t gva').replace(/\tfield:u64 old_spte.*\n/, '')),
  )!;
  assert.equal(renamed.fields.length, 8);
  assert.equal(eventPlan(parseFormat(FAST, 'sched')), undefined);
  assert.equal(eventPlan(parseFormat(FAST.replace('fast_page_fault', 'slow_page_fault'))), undefined);
});

test('bit 4 of a role is turned where the kernel says that it means 8 bytes', () => {
  const page = (bit: string): string =>
    `name: kvm_mmu_sync_page\nID: 9\n\tfield:__u32 role;\toffset:8;\tsize:4;\tsigned:0;\nprint fmt: "%s", ({ role.word = REC->role; ${bit} ? 4 : 8 })`;
  assert.equal(eventPlan(parseFormat(page('role.has_4_byte_gpte')))!.fields[0]!.invert, 0);
  assert.equal(eventPlan(parseFormat(page('role.gpte_is_8_bytes')))!.fields[0]!.invert, 16);
});

test('a format that is none is refused, with what is wrong', () => {
  for (const [text, message] of [
    ['', /no line "name:"/],
    ['name: a\n', /"ID:"/],
    ['name: a\nID: 0\n', /"ID:"/],
    ['name: a\nID: 70000\n', /"ID:"/],
    ['name: a\nID: 1\n\tfield:int x;\toffset:65535;\tsize:4;\tsigned:1;\n', /field x of a ends at byte 65539/],
  ] as const)
    assert.throws(
      () => parseFormat(text),
      (error) => error instanceof TraceError && message.test(error.message),
    );
});
