import assert from 'node:assert/strict';
import test from 'node:test';
import { thisMachine } from '../../adapter/kvm/place.ts';
import { Lab } from '../../adapter/lab/boot.ts';
import { planStubs, type Stubs } from '../../adapter/scenario-kvm/stubs.ts';
import { openRecording } from '../../adapter/trace/open.ts';
import { project } from '../../engine/history/project.ts';
import type { Recording } from '../../engine/history/recording.ts';
import { TRACEPOINTS } from '../../engine/history/tracepoints.ts';
import { roleWords } from '../../engine/kernel/role.ts';
import type { KvmTables } from '../../engine/kernel/tables.ts';
import type { Machine } from '../../engine/machine.ts';
import { emulatorBuilt } from '../../engine/queries/emulator-built.ts';
import { parseScenario } from '../../scenario/index.ts';
import { SILENT, withoutKvm } from '../kvm/kvm.ts';
import { withoutShadow } from './here.ts';
import { labTest, NEWER_KERNELS } from './lab.ts';
import { type ProgramShape, randomProgram } from './programs.ts';
import { builtTables, emulate, onKvm, STUBS } from './run-both.ts';

// The engine's shadow paging beside upstream KVM's: every event, in its order.

const FIRST = Number(process.env.KVM_MMU_SEED ?? 1);
const PROGRAMS = Number(process.env.KVM_MMU_AGREEMENT ?? 5);

const ADDRESS = 0xf_ffff_ffff_f000n;

const isStub = (gfn: bigint): boolean => gfn >= BigInt(STUBS.first) && gfn < BigInt(STUBS.end);
/**
 * The guests' own tables lie at the end of the first slot, and from 8M up, and frame 0 is one where CR4.PSE = 0 makes a table of a
 * large page: only the stubs' mapping of all memory maps them.
 */
const isTable = (gfn: bigint): boolean =>
  (gfn >= 0xf00n && gfn < 0x1000n) || (gfn >= 0x800n && gfn < 0x900n) || gfn === 0n;

/** The lab's processor, QEMU's, forgets P when a reserved bit faults (its mmu_translate): of such a fault P is not compared. */
const pferr = (code: bigint): string => `0x${((code & 8n) === 0n ? code : code & ~1n).toString(16)}`;

/** Where the code that makes a program's accesses on KVM lies in the guest's address space, and how it is mapped. */
function stubsOf(text: string): Stubs {
  const { program } = parseScenario(text);
  const [stubs] = planStubs(program!, 1).values();
  assert.ok(stubs && isStub(stubs.gpa >> 12n));
  return stubs;
}

/** What both machines tell of an event, without where host memory lies; undefined for what only one of them can have. */
function told(recording: Recording, at: number, { paging, base, end }: Stubs): string | undefined {
  const { name, fields } = TRACEPOINTS[recording.kind(at)]!;
  const index = (wanted: string): number => fields.findIndex((each) => each.name === wanted);
  const field = (wanted: string): bigint => recording.value(at, index(wanted));
  const hex = (wanted: string): string => `0x${field(wanted).toString(16)}`;
  switch (name) {
    case 'kvm_page_fault':
      return field('fault_address') >= base && field('fault_address') < end
        ? undefined
        : `#PF ${hex('fault_address')}, ${pferr(field('error_code'))}`;
    case 'kvm_inj_exception':
      // One that the processor could not deliver at once comes again.
      return field('exception') === 14n && field('reinjected') === 0n ? `injects #PF, ${hex('error_code')}` : undefined;
    case 'kvm_mmu_get_page':
    case 'kvm_mmu_prepare_zap_page':
    case 'kvm_mmu_sync_page':
    case 'kvm_mmu_unsync_page': {
      // Direct pages shadow the large pages that the stubs have in long mode; the scenario has none.
      if (isStub(field('gfn')) || (paging === '4-level' && (field('role') & 0x80n) !== 0n)) return undefined;
      const known = 0x0001_1fff;
      const role = roleWords(Number(field('role')) & known, known);
      const created = name === 'kvm_mmu_get_page' ? (field('created') ? ', new' : ', existing') : '';
      return `${name.slice('kvm_mmu_'.length)} ${hex('gfn')}: ${role}, ${field('root_count')} roots${field('unsync') ? ', unsync' : ''}${created}`;
    }
    case 'kvm_mmu_set_spte':
      if (isStub(field('gfn')) || isTable(field('gfn'))) return undefined;
      return `set_spte ${hex('gfn')} level ${field('level')}: 0x${(field('spte') & ~ADDRESS).toString(16)}`;
    default:
      return undefined;
  }
}

/**
 * A vCPU's current root and those before it: for which CR3, in what role, and how many references they have. Of PAE roots, which no
 * kvm_mmu_page is for, the four pages that they lead to.
 */
function roots({ roots: list, tables }: KvmTables): string[] {
  const pageWords = (frame: number): string[] => {
    const { gfn, role, roleKnown, counts, entries } = tables.get(frame)!;
    if (roleKnown !== 0) return [`gfn 0x${gfn.toString(16)}, ${roleWords(role)}, ${counts!.roots} roots`];
    return [0, 1, 2, 3].flatMap((index) => {
      const entry = (BigInt(entries[2 * index + 1]!) << 32n) | BigInt(entries[2 * index]!);
      const child = tables.get(Number((entry & ADDRESS) >> 12n));
      if ((entry & 1n) === 0n || !child || isStub(BigInt(child.gfn))) return [];
      return pageWords(child.frame).map((words) => `${index}: ${words}`);
    });
  };
  return [...list]
    .sort((a, b) => (a.which === 'current' ? -1 : Number(a.which)) - (b.which === 'current' ? -1 : Number(b.which)))
    .map(
      ({ which, pgd, frame, invalid }) =>
        `${which}: CR3 0x${pgd!.toString(16)}, ${pageWords(frame).join('; ')}${invalid ? ', invalid' : ''}`,
    );
}

/** @param own threads whose events count: on a machine that others use, theirs do not */
function sequence(recording: Recording, stubs: Stubs, own?: ReadonlySet<number>): string[] {
  return Array.from({ length: recording.length }, (_, at) =>
    own?.has(recording.pid(at)) === false ? undefined : told(recording, at, stubs),
  ).filter((each) => each !== undefined);
}

/**
 * What KVM tells besides the engine, by the function of KVM's that does it. make_spte, until Linux 6.13: an entry that was synchronized
 * has no A, so that a fault which finds it there sets it once more.
 */
function allowed(engine: readonly string[], kvm: readonly string[], [major, minor]: readonly number[]): string[] {
  if (major! > 6 || (major === 6 && minor! >= 13)) return [...kvm];
  const kept: string[] = [];
  let isSynced = false;
  kvm.forEach((event, at) => {
    isSynced ||= event.startsWith('sync_page') || event.endsWith(', unsync, existing');
    const isAgain = isSynced && event.startsWith('set_spte') && kvm[at + 1] === engine[kept.length];
    if (event === engine[kept.length] || !isAgain) kept.push(event);
  });
  return kept;
}

function projected(machine: Machine): Recording {
  const lines = [...project(machine)].map(
    ({ step, event, text }, at) => `  task-1  [000] ..... ${step}.${`${at}`.padStart(6, '0')}: ${event}: ${text}\n`,
  );
  return openRecording(new TextEncoder().encode(`# tracer: nop\n#\n${lines.join('')}`));
}

const SHAPES: readonly (readonly [string, ProgramShape])[] = [
  ['accesses', { statements: 30, host: false, guest: false, ownCode: true }],
  ['edits of the guest’s tables and registers', { statements: 40, host: false, guest: true, ownCode: true }],
  ['slots, dirty logging and notifiers', { statements: 40, host: true, guest: false, ownCode: true }],
  ['tables of upper levels', { statements: 60, host: false, guest: true, ownCode: true, far: true }],
  ['five address spaces', { statements: 60, host: false, guest: true, ownCode: true, spaces: 5 }],
];

/** The stubs of long mode have large pages too, which cannot be told from the scenario's. */
const LARGE_SHAPE: readonly [string, ProgramShape] = [
  'large pages',
  { statements: 60, host: false, guest: true, ownCode: true, large: true },
];

for (const kernel of NEWER_KERNELS)
  for (const paging of ['4-level', 'pae', '32-bit'] as const)
    labTest(
      `${kernel}, shadow paging of ${paging} guests: every event of the engine’s is one that KVM records, in its order, and so are the roots that are kept`,
      async (context) => {
        const lab = await Lab.boot({ kernel, modules: [], params: { npt: '0' } }, SILENT);
        const release = lab.release.split('.').map(Number);
        const [major = 0, minor = 0] = release;
        if (major < 6 || (major === 6 && minor < 4)) {
          lab.close();
          context.skip(`FNAME(invlpg) of Linux ${lab.release} zaps entries and prefetches: the engine is today’s`);
          return;
        }
        let same = 0;
        let kept = 0;
        const shapes = paging === '4-level' ? SHAPES : [...SHAPES, LARGE_SHAPE];
        try {
          for (let seed = FIRST; seed < FIRST + PROGRAMS / shapes.length; seed++) {
            for (const [name, shape] of shapes) {
              const text = randomProgram(seed, { ...shape, second: 'shadow', paging });
              const stubs = stubsOf(text);
              const machine = emulate(text);
              const engine = { events: sequence(projected(machine), stubs), roots: roots(emulatorBuilt(machine)) };
              const kvm = await onKvm(
                text,
                lab,
                async (opened) => {
                  const { built } = opened;
                  await built.pull();
                  assert.deepEqual(built.events!.recording.losses, []);
                  return {
                    events: allowed(engine.events, sequence(built.events!.recording, stubs), release),
                    roots: roots(await builtTables(opened)),
                  };
                },
                'events',
              );
              assert.deepEqual(engine, kvm, `seed ${seed}, ${name}\n${text}`);
              same += kvm.events.length;
              kept += kvm.roots.length;
            }
          }
        } finally {
          lab.close();
        }
        assert.ok(same > 20 * PROGRAMS, `only ${same} events were compared`);
        console.log(`${same} events alike, in one order; ${kept} roots at the ends, current and previous`);
      },
      kernel,
    );

for (const kernel of NEWER_KERNELS)
  labTest(
    `${kernel}, NPT: a vCPU's root has the role and the references that the engine gives it`,
    async () => {
      const lab = await Lab.boot({ kernel, modules: [], params: { npt: '1' } }, SILENT);
      try {
        for (let seed = FIRST; seed < FIRST + PROGRAMS / 4; seed++) {
          const shape = { statements: 40, host: false, guest: true, spaces: 5 };
          const text = randomProgram(seed, { ...shape, second: 'tdp npt 5-level' });
          const kvm = await onKvm(text, lab, async (opened) => roots(await builtTables(opened)));
          assert.deepEqual(roots(emulatorBuilt(emulate(text))), kvm, `seed ${seed}\n${text}`);
        }
      } finally {
        lab.close();
      }
    },
    kernel,
  );

/**
 * On a KVM that is a guest itself (PVM) the supervisor's accesses are emulated, whatever the tables say, and its stores to tables with
 * them; nor does that kernel tell of page faults. What is left to compare are the user's accesses: the pages, entries and
 * injected faults that they lead to. A fetch would need code that is written from outside.
 */
test('this machine’s KVM, shadow paging: the user’s accesses lead to the engine’s events', {
  skip: withoutKvm() ?? false,
  timeout: process.env.KVM_MMU_AGREEMENT ? 600_000 : 60_000,
}, async (t) => {
  const missing = await withoutShadow();
  if (missing !== undefined) return t.skip(missing);
  const withoutFaults = (recording: Recording, stubs: Stubs, own?: ReadonlySet<number>): string[] =>
    sequence(recording, stubs, own).filter((each) => !each.startsWith('#PF'));
  let same = 0;
  for (let seed = FIRST; seed < FIRST + PROGRAMS; seed++) {
    const text = randomProgram(seed, { statements: 40, host: false, guest: false, second: 'shadow' })
      .replace(/^ {2}(read|write)/gm, '  user $1')
      .replace(/^ {2}(user )?fetch.*\n/gm, '');
    const stubs = stubsOf(text);
    const kvm = await onKvm(
      text,
      thisMachine(),
      async ({ built, info }) => {
        await built.pull();
        return withoutFaults(built.events!.recording, stubs, new Set([info.pid, ...(info.threads ?? [])]));
      },
      'events',
    );
    assert.deepEqual(withoutFaults(projected(emulate(text)), stubs), kvm, `seed ${seed}\n${text}`);
    same += kvm.length;
  }
  console.log(`${same} events alike, in one order`);
});
