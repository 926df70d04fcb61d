import { roleField } from '../kernel/role.ts';
import type { KvmRoot, KvmTable, KvmTables } from '../kernel/tables.ts';
import type { Machine } from '../machine.ts';
import { MMUS, type Vcpu } from '../vcpu.ts';

const ALL_KNOWN = 0xffff_ffff;

/** What the emulator's KVM has built, as a real one's is told: exact, as of now. */
export function emulatorBuilt(machine: Machine): KvmTables {
  const tables = new Map<number, KvmTable>();
  for (const page of machine.pages.values())
    tables.set(page.pfn, {
      frame: page.pfn,
      gfn: page.gfn,
      role: page.role,
      roleKnown: ALL_KNOWN,
      entries: machine.memory.page(page.pfn),
      certainty: 'exact',
      counts: {
        roots: page.rootCount,
        unsync: page.shadow?.unsync ?? false,
        unsyncChildren: page.shadow?.unsyncChildren.length ?? 0,
        writeFlooding: page.shadow?.writeFlooding ?? 0,
        nxDisallowed: page.nxHugePageDisallowed,
        validGen: page.shadow?.validGen ?? 0,
      },
    });
  const roots: KvmRoot[] = [];
  for (const vcpu of machine.vcpus) {
    for (const name of ['root', 'guest'] as const) addRoots(machine, vcpu, name, tables, roots);
  }
  const roles = machine.vcpus.flatMap(({ id, mmus }) =>
    MMUS.map((mmu) => ({ vcpu: id, mmu, rootRole: mmus[mmu].rootRole, cpuRole: mmus[mmu].cpuRole })),
  );
  return { kind: machine.config.second, source: 'kernel', certainty: 'exact', why: '', tables, roots, roles };
}

function addRoots(
  machine: Machine,
  vcpu: Vcpu,
  name: 'root' | 'guest',
  tables: Map<number, KvmTable>,
  roots: KvmRoot[],
): void {
  const { root, prevRoots, paeRoot, rootRole } = vcpu.mmus[name];
  if (paeRoot >= 0)
    tables.set(paeRoot, {
      frame: paeRoot,
      gfn: 0,
      role: 0,
      roleKnown: 0,
      entries: machine.memory.page(paeRoot),
      certainty: 'exact',
    });
  for (const [index, { pfn, pgd }] of [root, ...prevRoots].entries()) {
    if (pfn < 0) continue;
    const page = machine.pages.get(pfn);
    roots.push({
      vcpu: vcpu.id,
      ...(name === 'guest' ? { mmu: name } : {}),
      ...(name === vcpu.active ? {} : { inactive: true }),
      which: index === 0 ? 'current' : ((index - 1) as 0 | 1 | 2),
      frame: pfn,
      pgd,
      levels: page?.level ?? Math.max(3, roleField(rootRole, 'level')),
      invalid: page?.invalid ?? false,
    });
  }
}
