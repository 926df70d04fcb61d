import { COUNTERS, type CounterName } from '../counters.ts';
import type { Program } from '../program.ts';

/** Names that expressions ask for, with their dots. */
export function namesIn(root: object): Set<string> {
  const names = new Set<string>();
  const visit = (node: object): void => {
    const { kind, path } = node as { kind?: unknown; path?: unknown };
    if (kind === 'name' && Array.isArray(path)) names.add(path.join('.'));
    for (const value of Object.values(node)) if (typeof value === 'object' && value !== null) visit(value);
  };
  visit(root);
  return names;
}

/** Counters that tasks ask for, by which states then differ; undefined where they ask for the number of steps, by which every state does. */
export function countersOf({ tasks }: Program): CounterName[] | undefined {
  const names = namesIn(tasks);
  return names.has('step') ? undefined : COUNTERS.filter((name) => names.has(name));
}
