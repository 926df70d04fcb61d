import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { project } from '../../engine/history/project.ts';
import { hashTables } from '../../engine/pgtable/hash.ts';
import { Run } from '../../engine/run.ts';
import { parseScenario } from '../../scenario/index.ts';

// What each example would have recorded under KVM's tracepoints, and what it cost: read a difference before accepting it.

/** Lines of a golden file; the rest of a long run is told by its length and the final hash. */
const LINES = 150;

for (const name of readdirSync('examples').filter((file) => file.endsWith('.mmu') && file !== 'populate.mmu')) {
  test(`${name}: tracepoints, costs and final tables`, () => {
    const { program } = parseScenario(readFileSync(`examples/${name}`, 'utf8'));
    assert.ok(program);
    const run = new Run(program);
    assert.equal(run.runToEnd(1_000_000), true);
    const { machine } = run;
    const events = [...project(machine)].map(({ step, task, event, text }) => `${step} ${task}: ${event}: ${text}`);
    const costs = machine.counterList().flatMap(([counter, value]) => (value > 0 ? [`${counter} ${value}`] : []));
    const tables = machine
      .roots()
      .map(
        (root) =>
          `root 0x${root.pfn.toString(16)}000 ${hashTables(machine.memory, { format: machine.secondFormat, root: root.pfn })}`,
      );
    const rest = events.length > LINES ? [`… and ${events.length - LINES} more`] : [];
    const text = `${[...events.slice(0, LINES), ...rest, ...costs, ...tables].join('\n')}\n`;
    const path = `test/golden/trace-${name}.txt`;
    if (process.env.UPDATE_GOLDEN === '1') writeFileSync(path, text);
    assert.ok(existsSync(path), `${path} is missing: run once with UPDATE_GOLDEN=1 and read what it wrote`);
    assert.equal(text, readFileSync(path, 'utf8'));
  });
}

test('an event never tells of a change that did not happen: replaying spte_changed rebuilds the final tables', () => {
  const { program } = parseScenario(readFileSync('examples/races.mmu', 'utf8'));
  assert.ok(program);
  const run = new Run(program);
  run.runToEnd(1_000_000);
  const { machine } = run;
  // gfn and level name an entry within one root; the last value told must be the one in the tables.
  const told = new Map<string, string>();
  let previous = new Map<string, string>();
  for (const { event, text } of project(machine)) {
    if (event === 'kvm_mmu_get_page' && text.includes(' l4 ')) {
      previous = new Map(told);
      told.clear();
    }
    const match = /gfn (\w+) level (\d) old_spte (\w+) new_spte (\w+)/.exec(text);
    if (event !== 'kvm_tdp_mmu_spte_changed' || !match) continue;
    told.set(`${match[2]} ${match[1]}`, match[4]!);
  }
  assert.ok(told.size > 0 && previous.size >= 0);
  for (const page of machine.pages.values()) {
    for (let index = 0; index < 512; index++) {
      const value = machine.readEntry(page.pfn, index).toString(16);
      const gfn = (page.gfn + index * machine.secondFormat.span[page.level]!).toString(16);
      const last = told.get(`${page.level} ${gfn}`);
      if (last === undefined) assert.equal(value, '8000000000000000', `level ${page.level} gfn ${gfn}`);
      // Accessed and dirty bits change without an event.
      else
        assert.equal(BigInt(`0x${value}`) & ~0x300n, BigInt(`0x${last}`) & ~0x300n, `level ${page.level} gfn ${gfn}`);
    }
  }
});
