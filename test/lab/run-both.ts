import assert from 'node:assert/strict';
import type { HelperPlace } from '../../adapter/kvm/place.ts';
import type { TableSource } from '../../adapter/kvm/wanted.ts';
import { parseTables } from '../../adapter/rsp/tables.ts';
import { type OpenedScenario, openScenario } from '../../adapter/scenario-kvm/open.ts';
import { evaluateInteger } from '../../engine/expression.ts';
import type { KvmTables } from '../../engine/kernel/tables.ts';
import type { Machine } from '../../engine/machine.ts';
import { programScope } from '../../engine/queries/scope.ts';
import { Run } from '../../engine/run.ts';
import { parseExpression, parseScenario } from '../../scenario/index.ts';

/** A leaf entry of KVM's tables. */
export interface Leaf {
  readonly level: number;
  /** The bits that are not the address. */
  readonly flags: bigint;
  readonly pfn: number;
}

/** Bits 51:12, and KVM's own that say what an entry is (arch/x86/kvm/mmu/spte.h). */
const ADDRESS = 0xf_ffff_ffff_f000n;
const PRESENT = 0x800n;
const LARGE = 0x80n;
/** Of PAE roots, which are the processor's alone. */
const P = 1n;

/** Where the stubs of scenarios lie: 32M above the memory of programs.ts, rounded to 2M. */
export const STUBS = { first: 0x2200, end: 0x2400 };

/** A program's end in the emulator. */
export function emulate(text: string): Machine {
  const { program, diagnostics } = parseScenario(text);
  assert.ok(program, diagnostics.map(({ message }) => message).join('\n'));
  const run = new Run(program);
  assert.ok(run.runToEnd(1_000_000), 'the emulator does not come to an end');
  return run.machine;
}

/** The program with what it comes to in the emulator, as expectations of these cells. */
export function withEnd(text: string, cells: readonly string[]): string {
  const machine = emulate(text);
  const scope = programScope(machine, machine.tasks[0]!);
  const lines = cells.map((cell) => {
    const { expression } = parseExpression(cell);
    return `expect ${cell} == ${evaluateInteger(expression!, scope, cell)}`;
  });
  return `${text}\n${lines.join('\n')}\n`;
}

/** A program run to its end on KVM, and what is asked there. `tables`: who is to tell of KVM's own. */
export async function onKvm<T>(
  text: string,
  place: HelperPlace,
  ask: (opened: OpenedScenario) => Promise<T>,
  tables?: TableSource,
): Promise<T> {
  const { program } = parseScenario(text);
  const kept = { start: place.start.bind(place), close() {} };
  const opened = await openScenario(program!, () => {}, kept, tables === undefined ? {} : { tables });
  try {
    const { run } = opened;
    for (let task = await run.pick(); task; task = await run.pick()) await run.step(task);
    return await ask(opened);
  } finally {
    await opened.close();
  }
}

/** What the kernel says that KVM has built. */
export async function builtTables({ client, info }: OpenedScenario): Promise<KvmTables> {
  return parseTables(await client.vendor('qKvm.Tables'), info.secondStage).tables;
}

const leafOf = (level: number, value: bigint): Leaf => ({
  level,
  flags: value & ~ADDRESS,
  pfn: Number((value & ADDRESS) >> 12n),
});

/** Leaf entries of the emulator's valid roots, by gfn. */
export function emulatedLeaves(machine: Machine): Map<number, Leaf> {
  const leaves = new Map<number, Leaf>();
  const format = machine.secondFormat;
  const visit = (frame: number): void => {
    const page = machine.pages.get(frame)!;
    for (let index = 0; index < 512; index++) {
      const value = machine.readEntry(frame, index);
      if ((value & PRESENT) === 0n) continue;
      const gfn = page.gfn + index * format.span[page.level]!;
      if (page.level === 1 || (value & LARGE) !== 0n) leaves.set(gfn, leafOf(page.level, value));
      else visit(Number((value & ADDRESS) >> 12n));
    }
  };
  for (const root of machine.roots()) if (!root.invalid) visit(root.pfn);
  return leaves;
}

/** Leaf entries below the current root of vCPU 0: by gfn; of shadow tables by the frame of the virtual address. */
export function builtLeaves(built: KvmTables): Map<number, Leaf> {
  const leaves = new Map<number, Leaf>();
  const visit = (frame: number, level: number, first: number): void => {
    const table = built.tables.get(frame);
    assert.ok(table, `KVM’s table at frame ${frame} is not there`);
    const isPaeRoot = table.roleKnown === 0;
    for (let index = 0; index < 512; index++) {
      const value = (BigInt(table.entries[2 * index + 1]!) << 32n) | BigInt(table.entries[2 * index]!);
      if ((value & (isPaeRoot ? P : PRESENT)) === 0n) continue;
      const gfn = first + index * 512 ** (level - 1);
      if (level === 1 || (value & LARGE) !== 0n) leaves.set(gfn, leafOf(level, value));
      else visit(Number((value & ADDRESS) >> 12n), level - 1, gfn);
    }
  };
  const root = built.roots.find(({ vcpu, which }) => vcpu === 0 && which === 'current');
  if (root) visit(root.frame, root.levels, 0);
  return leaves;
}

export const leafWords = ({ level, flags }: Leaf): string => `level ${level}, 0x${flags.toString(16)}`;

/** In what two sets of leaf entries differ, an entry a line. Which frame the host gives does not count, but that it is one. */
export function leafDifferences(engine: Map<number, Leaf>, kvm: Map<number, Leaf>): string[] {
  const lines: string[] = [];
  const frames = new Map<number, number>();
  for (const [gfn, leaf] of engine) {
    const real = kvm.get(gfn);
    const name = `gfn 0x${gfn.toString(16)}`;
    if (!real) lines.push(`${name}: the engine has ${leafWords(leaf)}, KVM nothing`);
    else if (leafWords(real) !== leafWords(leaf))
      lines.push(`${name}: the engine has ${leafWords(leaf)}, KVM ${leafWords(real)}`);
    if (real) {
      const other = frames.get(real.pfn);
      if (other !== undefined) lines.push(`${name}: KVM maps it to the frame of gfn 0x${other.toString(16)}`);
      frames.set(real.pfn, gfn);
    }
  }
  // What makes the accesses on KVM has pages of its own.
  for (const [gfn, leaf] of kvm)
    if (!engine.has(gfn) && (gfn < STUBS.first || gfn >= STUBS.end))
      lines.push(`gfn 0x${gfn.toString(16)}: KVM has ${leafWords(leaf)}, the engine nothing`);
  return lines;
}
