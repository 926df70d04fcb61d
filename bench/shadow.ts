// Roles, roots and shadow pages, beside themselves: policies beside today's, shadow faults beside the TDP MMU's, many pages beside few.
import { freemem } from 'node:os';
import { performance } from 'node:perf_hooks';
import type { Machine } from '../engine/machine.ts';
import type { Policies } from '../engine/policies.ts';
import { POLICY_VALUES } from '../engine/policies.ts';
import { withRole } from '../engine/roots/role.ts';
import { Run } from '../engine/run.ts';
import { getShadowPage } from '../engine/shadow/pages.ts';
import { commitZap, prepareZap } from '../engine/shadow/zap.ts';
import { parseScenario } from '../scenario/index.ts';

const ROUNDS = 5;

function programOf(text: string, policies?: Partial<Policies>) {
  const { program, diagnostics } = parseScenario(text);
  if (!program) throw new Error(diagnostics.map(({ message }) => message).join('\n'));
  return { ...program, machine: { ...program.machine, policies: { ...program.machine.policies!, ...policies } } };
}

/** Milliseconds of the quickest round. */
function best(work: () => void): number {
  let least = Number.POSITIVE_INFINITY;
  for (let round = 0; round < ROUNDS; round++) {
    const begin = performance.now();
    work();
    least = Math.min(least, performance.now() - begin);
  }
  return least;
}

const row = (what: string, unit: string, value: number, ratio: number, beside: string): void =>
  console.log(
    `${what.padEnd(44)} ${value.toFixed(1).padStart(10)} ${unit.padEnd(14)} ${ratio.toFixed(2).padStart(8)} × ${beside}`,
  );

// ---- toggles of CR0.WP

const TOGGLES = 2000;
const toggling = `machine {
  memory 0 +16M
}
guest k {
  map 0x400000 -> 0x200000 +64K r-x
}
vcpu 0 in k {
  repeat ${TOGGLES / 2} {
    cr0.wp = 0
    write 0x400000
    cr0.wp = 1
  }
}
`;

const toggles = new Map(
  POLICY_VALUES.roots.map((roots) => {
    const program = programOf(toggling, { roots });
    return [roots, best(() => void new Run(program).runToEnd())] as const;
  }),
);
for (const [roots, time] of toggles)
  row(`CR0.WP, roots = ${roots}`, 'µs a toggle', (time * 1000) / TOGGLES, time / toggles.get('today')!, 'today');

const legacy = { roots: 'before', 'tdp-mmu': 'off' } as const;
const withoutTdpMmu = best(() => void new Run(programOf(toggling, legacy)).runToEnd());
row(
  'CR0.WP, roots = before, tdp-mmu = off',
  'µs a toggle',
  (withoutTdpMmu * 1000) / TOGGLES,
  withoutTdpMmu / toggles.get('before')!,
  'before, with the TDP MMU',
);

// ---- faults

const PAGES = 4096;
const touching = (second: string): string => `machine {
  memory 0 +64M
  second-stage ${second}
}
guest k {
  map 0x1000000 -> 0x1000000 +16M rw-
}
vcpu 0 in k {
  repeat ${PAGES} as i {
    write 0x1000000 + i * 4096
  }
}
`;
const faults = (second: string): number => {
  const program = programOf(touching(second));
  return best(() => void new Run(program).runToEnd());
};
const tdp = faults('tdp npt 4-level');
const shadow = faults('shadow');
row('a fault, TDP MMU (NPT)', 'µs', (tdp * 1000) / PAGES, 1, 'itself');
row('a fault, shadow paging', 'µs', (shadow * 1000) / PAGES, shadow / tdp, 'the TDP MMU');

// ---- growth. Direct pages take one frame each, of which KVM's tables have a million; those that shadow a table take two

const ROLE = withRole(0, { level: 1, access: 7, efer_nx: 1, direct: 1 });

/** A machine with so many last-level shadow pages, each of a gfn of its own. */
function crowded(count: number): Machine {
  const { machine } = new Run(
    programOf('machine {\n  memory 0 +4096M\n  second-stage shadow\n}\nvcpu 0 {\n  read 0\n}'),
    1 << 16,
  );
  const vcpu = machine.vcpu(0);
  for (let gfn = 0; gfn < count; gfn++) getShadowPage(machine, vcpu, gfn, ROLE);
  return machine;
}

const LOOKUPS = 1000;
/** What a million shadow pages take: 5.3 GiB were measured. */
const MOST_MEMORY = 6 * 2 ** 30;
let first: { lookup: number; zap: number } | undefined;
for (const count of [1e3, 1e4, 1e5, 1e6]) {
  if (count === 1e6 && freemem() < MOST_MEMORY) {
    console.log(`among ${count} shadow pages: skipped, ${MOST_MEMORY / 2 ** 30} GiB of free memory are needed`);
    break;
  }
  const machine = crowded(count);
  const vcpu = machine.vcpu(0);
  const lookup = best(() => {
    for (let i = 0; i < LOOKUPS; i++) getShadowPage(machine, vcpu, Math.floor((i * count) / LOOKUPS), ROLE);
  });
  const begin = performance.now();
  const invalid: number[] = [];
  for (let i = 0; i < LOOKUPS / 2; i++) {
    const [pfn] = machine.shadow.hash.get(i)!;
    prepareZap(machine, pfn!, invalid);
  }
  commitZap(machine, invalid);
  const zap = performance.now() - begin;
  first ??= { lookup, zap };
  row(`lookup among ${count} shadow pages`, 'µs', (lookup * 1000) / LOOKUPS, lookup / first.lookup, 'among 1000');
  row(`zap of one of ${count} shadow pages`, 'µs', (zap * 1000) / (LOOKUPS / 2), zap / first.zap, 'among 1000');
}
