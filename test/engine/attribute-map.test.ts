import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { rmpEntry } from '../../engine/attributes/rmp.ts';
import { LEAF } from '../../engine/formats/compile.ts';
import type { Machine } from '../../engine/machine.ts';
import { backingPfn } from '../../engine/memory/memslots.ts';
import { DEFAULT_POLICIES, ORDERINGS } from '../../engine/policies.ts';
import type { Program } from '../../engine/program.ts';
import { answer } from '../../engine/queries/answer.ts';
import type {
  Amount,
  AttributeMapAnswer,
  AttributesAnswer,
  AttributesQuery,
  CellFacts,
  PageAnswer,
  Query,
} from '../../engine/queries/answers.ts';
import { parseRequest } from '../../engine/queries/protocol.ts';
import { Run } from '../../engine/run.ts';
import { findEntry } from '../../engine/tdp/iterate.ts';
import { isPresent } from '../../engine/tdp/spte.ts';
import { parseScenario } from '../../scenario/index.ts';

// Private and shared memory as the map shows it, held against the machine page by page.

function programOf(text: string) {
  const { program, diagnostics } = parseScenario(text);
  assert.ok(program, JSON.stringify(diagnostics));
  return program;
}

/** Deterministic numbers below a limit. */
function random(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
}

function ask<K extends 'attributes' | 'attribute-map' | 'page'>(
  machine: Machine,
  query: Query & { kind: K },
  since = 0,
) {
  const { answer: found } = answer(machine, query, { since, fault: undefined });
  assert.equal(found.kind, query.kind, found.kind === 'error' ? found.message : '');
  return found as { attributes: AttributesAnswer; 'attribute-map': AttributeMapAnswer; page: PageAnswer }[K];
}

const hex = (value: number): string => `0x${value.toString(16)}`;

/** A window's cells, one by one. */
function cellsOf({ runs, facts, cells }: AttributesAnswer): CellFacts[] {
  const list: CellFacts[] = [];
  for (let at = 0; at < runs.length; at += 2) list.push(...new Array<CellFacts>(runs[at]!).fill(facts[runs[at + 1]!]!));
  assert.equal(list.length, cells);
  return list;
}

const amount = (found: number, of: number): Amount => (found === 0 ? 'none' : found === of ? 'all' : 'some');
const part = (found: number, of: number): 'some' | 'all' => (found === of ? 'all' : 'some');

/** What a cell must be, found out page by page. Changes are another matter. */
function expected(machine: Machine, start: number, pages: number): Omit<CellFacts, 'changed'> {
  const { attributes, small, invalidation, secondFormat } = machine;
  const roots = machine.roots().filter(({ invalid }) => !invalid);
  const found = { slot: 0, gmem: 0, private: 0, folios: 0, assigned: 0, large: 0, validated: 0, split: 0, holes: 0 };
  const mapped = { pages: 0, levels: new Set<number>(), private: 0, shared: 0, stale: 0, dirty: 0 };
  const converting = new Set<boolean>();
  let invalidating = false;
  for (let gfn = start; gfn < start + pages; gfn++) {
    for (const each of small.conversions) if (each.start <= gfn && gfn < each.end) converting.add(each.isPrivate);
    if (invalidation.inProgress > 0 && invalidation.start <= gfn && gfn < invalidation.end) invalidating = true;
    const slot = machine.slots.find(gfn);
    if (!slot) continue;
    const isPrivate = attributes.store.isPrivate(gfn);
    found.slot++;
    if (isPrivate) found.private++;
    if (slot.gmem) {
      const pfn = backingPfn(slot, gfn, slot.gmem);
      found.gmem++;
      if (attributes.folios.get(pfn) !== undefined) found.folios++;
      if (attributes.split.get(Math.floor(pfn / 512))) found.split++;
      if (attributes.holes.get(pfn)) found.holes++;
      const entry = rmpEntry(machine, pfn);
      if (entry) found.assigned++;
      if (entry?.level === 2) found.large++;
      if (entry?.validated) found.validated++;
    }
    if (!roots[0]) continue;
    const { lo, hi, level } = findEntry(machine, roots[0].pfn, gfn);
    if (secondFormat.classify(level, lo) !== LEAF || !isPresent(lo)) continue;
    const target = secondFormat.frame(level, lo, hi) + (gfn % secondFormat.span[level]!);
    mapped.pages++;
    mapped.levels.add(level);
    const isPrivateFrame = slot.gmem !== undefined && target === backingPfn(slot, gfn, slot.gmem);
    const isSharedFrame = target === backingPfn(slot, gfn);
    if (isPrivateFrame && isSharedFrame) mapped[isPrivate ? 'private' : 'shared']++;
    else mapped[isPrivateFrame ? 'private' : 'shared']++;
    if (!(isPrivate ? isPrivateFrame : isSharedFrame)) mapped.stale++;
    if ((lo & secondFormat.dirtyLo) !== 0) mapped.dirty++;
  }
  const { slot, gmem, assigned } = found;
  return {
    slot: amount(slot, pages),
    gmem: amount(gmem, slot),
    private: amount(found.private, slot),
    ...(converting.size === 0
      ? {}
      : { converting: converting.size === 2 ? 'both' : converting.has(true) ? 'private' : 'shared' }),
    ...(invalidating ? { invalidating } : {}),
    ...(found.folios > 0 ? { folios: part(found.folios, gmem) } : {}),
    ...(assigned > 0
      ? {
          rmp: {
            assigned: part(assigned, gmem),
            large: amount(found.large, assigned),
            validated: amount(found.validated, assigned),
          },
        }
      : {}),
    ...(found.split > 0 ? { split: part(found.split, gmem) } : {}),
    ...(found.holes > 0 ? { holes: part(found.holes, gmem) } : {}),
    stages: [
      mapped.pages === 0
        ? null
        : {
            mapped: part(mapped.pages, slot),
            levels: [...mapped.levels].sort(),
            frames: mapped.private > 0 ? (mapped.shared > 0 ? 'both' : 'private') : 'shared',
            stale: amount(mapped.stale, mapped.pages),
            dirty: amount(mapped.dirty, mapped.pages),
          },
    ],
  };
}

const withoutChanged = ({ changed: _, ...facts }: CellFacts): Omit<CellFacts, 'changed'> => facts;

/** A machine, and tasks that convert and use its memory. */
function randomScenario(next: (limit: number) => number): string {
  const pick = <T>(list: readonly T[]): T => list[next(list.length)]!;
  const page = (): string => hex(pick([0, 512, 1024 - 8, 1024, 2048]) * 4096 + next(40) * 4096);
  const size = (): string => pick(['4K', '4K', '16K', '2M', '2056K']);
  const convert = (): string => {
    const range = next(3) === 0 ? `${pick(['0', '0x200000'])} +2M` : `${page()} +${size()}`;
    return `  convert ${range} ${pick(['private', 'shared'])}`;
  };
  const vm = pick(['snp', 'snp', 'software-protected']);
  const access = (): string => {
    const how = `${pick(['read', 'write'])} ${page()}`;
    if (vm !== 'snp') return `  ${how}`;
    if (next(14) === 0) return `  pvalidate ${next(2) === 0 ? page() : `${pick(['0', '0x200000'])} 2M`}`;
    return `  ${pick(['private', 'shared'])} ${how}`;
  };
  const lines = (line: () => string, count: number): string => Array.from({ length: count }, line).join('\n');
  const huge = pick(['huge 2M ', '']);
  return `machine x86-64 {
  vm ${vm}
  memory 0 +4M ${huge}guest-memfd${huge && next(2) ? ' 2M' : ''}
  memory 0x400000 +96K guest-memfd
  memory 0x800000 +1M
  second-stage tdp npt 4-level
  launch 0 +${pick(['2M', '64K'])}
  private 0x3f0000 +${pick(['4K', '80K'])}
  policy conversion = ${pick(ORDERINGS)}
}
vcpu 0 {
${lines(access, 20)}
}
vcpu 1 {
${lines(access, 20)}
}
host vmm {
${lines(() => (next(4) === 0 ? `  punch ${page()} +${pick(['4K', '16K'])}` : convert()), 6)}
}
`;
}

/** The same, where pages may be converted in place. */
function withGmem(program: Program, next: (limit: number) => number): Program {
  const policies = { ...DEFAULT_POLICIES, ...program.machine.policies };
  const gmem = next(3) === 0 ? 'in-place' : policies['guest-memfd'];
  return { ...program, machine: { ...program.machine, policies: { ...policies, 'guest-memfd': gmem } } };
}

test('random machines are shown as they are, and as they were', () => {
  const seen = new Set<string>();
  for (let seed = 1; seed <= 110; seed++) {
    const next = random(seed);
    const program = withGmem(programOf(randomScenario(next)), next);
    const run = new Run(program);
    const stops: { readonly steps: number; readonly at: number }[] = [];
    const stepTo = (of: Run, steps: number): void => {
      while (of.machine.steps < steps) {
        const task = of.pick();
        if (!task) return;
        of.step(task);
      }
    };
    for (let stop = 0; stop < 6; stop++) {
      stepTo(run, run.machine.steps + 1 + next(160));
      const { machine } = run;
      stops.push({ steps: machine.steps, at: machine.log.length });
      const start = next(2600);
      const query = {
        kind: 'attributes',
        start: hex(start * 4096),
        end: hex((start + 1 + next(next(2) ? 40 : 1200)) * 4096),
        cells: 1 + next(64),
      } as const satisfies AttributesQuery;
      const found = ask(machine, query);
      assert.ok(found.cells <= query.cells);
      const pages = found.cellSize / 4096;
      cellsOf(found).forEach((cell, index) => {
        const first = Number(found.start) / 4096 + index * pages;
        const what = `seed ${seed}, step ${machine.steps}, gfn ${hex(first)} +${pages}`;
        assert.deepEqual(withoutChanged(cell), expected(machine, first, pages), what);
        for (const [name, value] of Object.entries({ ...cell, ...cell.rmp, ...cell.stages[0] }))
          seen.add(`${name} ${typeof value === 'string' ? value : ''}`);
      });
    }
    // Each stop once more, from the end, beside a machine that has gone no further.
    for (const { steps, at } of stops) {
      const then = new Run(program);
      stepTo(then, steps);
      const query = { kind: 'attributes', start: '0x0', end: '0x900000', cells: 200 } as const;
      const { conversions } = then.machine.small;
      then.machine.small.conversions = [];
      assert.deepEqual(
        cellsOf(ask(run.machine, { ...query, at })).map(withoutChanged),
        cellsOf(ask(then.machine, query)).map(withoutChanged),
        `seed ${seed}, as of step ${steps}`,
      );
      then.machine.small.conversions = conversions;
    }
  }
  for (const fact of [
    'private some',
    'converting private',
    'invalidating ',
    'rmp ',
    'large all',
    'validated some',
    'holes some',
  ])
    assert.ok(seen.has(fact), `no cell was ever ${fact}`);
  for (const fact of ['split all', 'stale all', 'frames both', 'mapped all', 'dirty all', 'folios some', 'slot some'])
    assert.ok(seen.has(fact), `no cell was ever ${fact}`);
});

test('a step marks what it changes, and nothing else', () => {
  for (let seed = 100; seed < 120; seed++) {
    const next = random(seed);
    const run = new Run(withGmem(programOf(randomScenario(next)), next));
    const query = { kind: 'attributes', start: '0x0', end: '0x900000', cells: 4096 } as const;
    let before = cellsOf(ask(run.machine, query)).map(withoutChanged);
    let texts = before.map((cell) => JSON.stringify(cell));
    for (let step = 0; step < 150; step++) {
      const since = run.machine.log.length;
      const task = run.pick();
      if (!task) break;
      run.step(task);
      const all = cellsOf(ask(run.machine, query, since));
      const now = all.map(withoutChanged);
      const nowTexts = now.map((cell) => JSON.stringify(cell));
      all.forEach((cell, gfn) => {
        if (nowTexts[gfn] === texts[gfn] && !cell.changed?.length) return;
        const old = before[gfn]!;
        const differs = (of: (facts: Omit<CellFacts, 'changed'>) => unknown): boolean =>
          JSON.stringify(of(cell)) !== JSON.stringify(of(old));
        const where = `seed ${seed}, step ${run.machine.steps}, gfn ${hex(gfn)}`;
        const changed = cell.changed ?? [];
        // Where there is no slot the attribute is kept, and not shown.
        if (cell.slot !== 'none')
          assert.equal(
            differs(({ private: isPrivate }) => isPrivate),
            changed.includes('attribute'),
            `${where}: attribute`,
          );
        assert.equal(
          differs(({ folios, rmp }) => [folios, rmp]),
          changed.includes('private-page'),
          `${where}: private page`,
        );
        assert.equal(
          differs(({ split, holes }) => [split, holes]),
          changed.includes('direct-map'),
          `${where}: direct map`,
        );
        // Whether an entry is stale follows from the attribute, and the processor sets A and D.
        const mapped = ({ stages }: Omit<CellFacts, 'changed'>) => stages.map((stage) => stage?.levels);
        if (differs(mapped)) assert.ok(changed.includes('second-stage'), `${where}: second stage`);
      });
      [before, texts] = [now, nowTexts];
    }
  }
});

test('an RMP entry of 2M that goes marks all of its pages', () => {
  const run = new Run(
    programOf(`machine {
  memory 0 +4M huge 2M guest-memfd 2M
  second-stage tdp npt 4-level
  vm snp
  launch 0 +2M
  policy conversion = rfc-v8
}
host vmm {
  convert 0 +2M shared
}
`),
  );
  const query = { kind: 'attributes', start: '0x0', end: '0x400000', cells: 1024 } as const;
  for (let task = run.pick(); task; task = run.pick()) {
    const since = run.machine.log.length;
    const entries = run.machine.attributes.rmp.size;
    run.step(task);
    if (run.machine.attributes.rmp.size === entries) continue;
    const marked = cellsOf(ask(run.machine, query, since)).filter(({ changed }) => changed?.includes('private-page'));
    assert.equal(marked.length, 512);
    return;
  }
  assert.fail('no entry ever went');
});

const EXAMPLE = readFileSync('examples/conversion.mmu', 'utf8');

/** Runs the example until something holds. */
function runUntil(until: (machine: Machine) => boolean, text = EXAMPLE): Run {
  const run = new Run(programOf(text));
  for (let task = run.pick(); !until(run.machine); task = run.pick()) {
    assert.ok(task, 'it never held');
    run.step(task);
  }
  return run;
}

test('a page in the midst of its conversion says who converts it, and how far that is', () => {
  const { machine } = runUntil(
    ({ tasks }) =>
      tasks.some(({ stack }) => stack.at(-1)?.fn === 'kvm_tdp_mmu_zap_leafs') ||
      tasks.some(({ stack }) => stack.some(({ fn, step }) => fn === 'kvm_vm_set_mem_attributes' && step > 6)),
  );
  const page = ask(machine, { kind: 'page', gpa: '0x10000' });
  const row = (name: string): string => page.rows.find((each) => each.name === name)?.words ?? `no ${name}`;
  assert.match(row('conversion'), /^vmm makes gpa 0x10000 \+4K shared; in \w+, next: \w/);
  assert.match(row('invalidation'), /^gpa 0x0 \+2M is being invalidated/);
  assert.match(page.sentence, /page of slot 0, being converted/);
  const map = ask(machine, { kind: 'attribute-map' });
  assert.deepEqual(
    map.conversions.map(({ task, gpa, size, to, page }) => ({ task, gpa, size, to, page })),
    [{ task: 'vmm', gpa: '0x10000', size: 4096, to: 'shared', page: '0x10000' }],
  );
  assert.deepEqual(map.invalidation, { gpa: '0x0', size: 2 ** 21, count: 1 });
});

test('a page tells its frames, entries and translations', () => {
  const run = new Run(programOf(EXAMPLE));
  run.runToEnd();
  const rows = (gpa: string, at?: number) =>
    ask(run.machine, { kind: 'page', gpa, ...(at === undefined ? {} : { at }) }).rows.map(
      ({ name, words }) => `${name}: ${words}`,
    );
  const converted = rows('0x10000');
  assert.ok(converted.includes('attribute: shared'), converted.join('\n'));
  assert.ok(
    converted.some((row) => /^RMP entry: the guest’s, as gpa 0x10000, 4K, validated/.test(row)),
    converted.join('\n'),
  );
  assert.ok(
    converted.some((row) => /^NPT: PTE 16 \(level 1, 4K\) maps the shared frame, rw/.test(row)),
    converted.join('\n'),
  );
  assert.ok(converted.includes('2M around it: private and shared pages, noted as mixed'), converted.join('\n'));
  assert.ok(
    rows('0x200000').some((row) =>
      /^TLB of vCPU 0: gva 0x200000, 4K, made by a private access; flushed before/.test(row),
    ),
  );
  assert.ok(rows('0x800000').includes('private frame: guest_memfd has no page there yet'));
  assert.deepEqual(rows('0x40000000'), [
    'gpa: gfn 0x40000',
    'attribute: shared',
    'memslot: none: an access is MMIO',
    'NPT: not mapped: PDPTE 1 (level 3) is empty',
  ]);
  // As it was when everything began.
  const { moments } = ask(run.machine, { kind: 'attribute-map' });
  const [launch] = moments;
  assert.equal(launch?.by, 'launch');
  assert.ok(rows('0x10000', launch.at).includes('attribute: private (KVM_MEMORY_ATTRIBUTE_PRIVATE)'));
  assert.ok(rows('0x10000', launch.at).includes('TLBs: not remembered of the past'));
  assert.deepEqual(
    moments.filter(({ begins }) => begins).map(({ words, by }) => `${by}: ${words}`),
    ['vmm: a conversion of 0x10000 +4K to shared begins', 'vmm: a conversion of 0x200000 +16K to private begins'],
  );
});

test('where there is no private memory the answer says why', () => {
  const { machine } = new Run(programOf('machine {\n  memory 0 +4M\n}\nvcpu 0 {\n  read 0\n}'));
  for (const query of [
    { kind: 'attribute-map' },
    { kind: 'page', gpa: '0x0' },
    { kind: 'attributes', start: '0x0', end: '0x1000', cells: 1 },
  ] as const) {
    const { answer: found } = answer(machine, query, { since: 0, fault: undefined });
    assert.ok(found.kind === 'error');
    assert.match(found.message, /ordinary VM: all of its memory is shared with the host/);
  }
});

test('what a view asks is checked, and what is wrong is named', () => {
  const error = (query: object): string => {
    const parsed = parseRequest({ type: 'watch', id: 'a', query });
    return 'error' in parsed ? parsed.error : `accepted ${JSON.stringify(parsed.request)}`;
  };
  const attributes = { kind: 'attributes', start: '0x0', end: '0x1000', cells: 4 };
  assert.match(error(attributes), /^accepted .*"cells":4/);
  assert.match(error({ ...attributes, cells: 4097 }), /query\.cells must be a whole number from 1 to 4096, not 4097/);
  assert.match(error({ ...attributes, end: '0x0' }), /query\.end must lie behind query\.start 0x0, not at 0x0/);
  assert.match(error({ ...attributes, start: 5 }), /query\.start must be a string, not 5/);
  assert.match(error({ ...attributes, at: -1 }), /query\.at must be a whole number/);
  assert.match(error({ kind: 'page' }), /query\.gpa must be a string, not undefined/);
  assert.match(error({ kind: 'page', gpa: 'x' }), /query\.gpa must be a 64-bit 0x… number/);
  const { machine } = new Run(programOf(EXAMPLE));
  const { answer: found } = answer(machine, { kind: 'page', gpa: '0x0', at: 1e6 }, { since: 0, fault: undefined });
  assert.ok(found.kind === 'error');
  assert.match(found.message, /log position 1000000 is not in the history/);
});

test('of TDX both trees are told: the shared EPT, and what mirrors the module’s', () => {
  const run = new Run(
    programOf(`machine {
  memory 0 +4M guest-memfd
  second-stage tdp ept 4-level
  vm tdx
  private 0x100000 +64K
}
vcpu 0 {
  accept 0x100000
  accept 0x102000
  private write 0x102000 = 1
  shared write 0x1000 = 2
  accept 0x101000
  private read 0x103000
}
host vmm {
  wait until accesses == 3
  convert 0x100000 +4K shared
  private write 0x102000 = 3
}
`),
  );
  run.runToEnd();
  assert.deepEqual(
    run.machine.small.failures.map(({ text }) => text),
    ['guest access before accepting gpa 0x103000 on vCPU 0: KVM_RUN fails with -EIO, and the VM is dead'],
  );
  const map = ask(run.machine, { kind: 'attribute-map' });
  assert.deepEqual(map.stages, ['shared EPT', 'S-EPT (mirror)']);
  const cells = cellsOf(ask(run.machine, { kind: 'attributes', start: '0x0', end: '0x400000', cells: 1024 }));
  const mapped = (stage: number): string[] =>
    cells.flatMap(({ stages }, gfn) =>
      stages[stage] ? [`${hex(gfn)} ${stages[stage]!.frames} ${stages[stage]!.stale}`] : [],
    );
  assert.deepEqual(mapped(0), ['0x1 shared none']);
  assert.deepEqual(mapped(1), ['0x101 private none', '0x102 private none', '0x103 private none']);
  assert.deepEqual(
    cells.flatMap(({ changed }, gfn) => (changed?.includes('mirror') ? [hex(gfn)] : [])),
    ['0x100', '0x101', '0x102', '0x103'],
  );
  const rows = (gpa: string): string[] =>
    ask(run.machine, { kind: 'page', gpa }).rows.map(({ name, words }) => `${name}: ${words}`);
  const page = rows('0x101000');
  assert.ok(page.includes('S-EPT: the TDX module has the page'), page.join('\n'));
  assert.ok(
    page.some((row) => /^S-EPT \(mirror\): EPT PTE 257 \(level 1, 4K\) maps the private frame/.test(row)),
    page.join('\n'),
  );
  assert.ok(
    page.some((row) => /^shared EPT: not mapped/.test(row)),
    page.join('\n'),
  );
  assert.ok(rows('0x100000').includes('S-EPT: the TDX module has no page there'));
  const ofModule = (gpa: string): string => rows(gpa).find((row) => row.startsWith('S-EPT: '))!;
  assert.equal(
    ofModule('0x103000'),
    'S-EPT: the TDX module has the page, pending: the guest has not accepted it (TDG.MEM.PAGE.ACCEPT)',
  );
  assert.equal(
    ofModule('0x102000'),
    'S-EPT: the TDX module has the page, the host has written to it: who reads it takes a machine check',
  );
  assert.match(ask(run.machine, { kind: 'page', gpa: '0x102000' }).sentence, /not as it should be: S-EPT$/);
});
