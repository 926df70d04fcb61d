import { REGISTER_BITS, REGISTERS, type RegisterName, type Registers, UNPAGED } from '../guest/registers.ts';
import { Kind } from '../history/log.ts';
import { ROLE_FIELDS, type RoleField, roleField, roleWords } from '../kernel/role.ts';
import { type KvmRoot, type KvmTable, type KvmTables, kvmLevel } from '../kernel/tables.ts';
import type { Machine } from '../machine.ts';
import { frameToAddress, hex, toBigint } from '../memory/words.ts';
import type { Mmu } from '../roots/mmu.ts';
import { cpuRole, EXT_ROLE_FIELDS, type ExtRoleField, shadowRootRole } from '../roots/role.ts';
import type {
  RoleFieldAnswer,
  RootCacheAnswer,
  RootCacheMoment,
  RootCardAnswer,
  ShadowPageAnswer,
  TableQuery,
  VcpuRootsAnswer,
} from './answers.ts';
import { emulatorBuilt } from './emulator-built.ts';

/** Pages and moments that an answer lists at most. */
const PAGES_MOST = 1000;
const MOMENTS_MOST = 500;

/** A role's fields, without those whose bits are not known. */
function roleFields(role: number, known: number): RoleFieldAnswer[] {
  return (Object.keys(ROLE_FIELDS) as RoleField[])
    .filter((name) => roleField(known, name) !== 0)
    .map((name) => ({ name, value: roleField(role, name) }));
}

function extFields(ext: number): RoleFieldAnswer[] {
  return (Object.keys(EXT_ROLE_FIELDS) as ExtRoleField[]).map((name) => ({
    name,
    value: (ext >> EXT_ROLE_FIELDS[name]) & 1,
  }));
}

function tableQuery(vcpu: number, frame: number, level: number): TableQuery {
  return { kind: 'table', space: 'second', vcpu, table: hex(frameToAddress(frame)), level, base: '0x0' };
}

/** The tables behind `pae_root`, where the root is one. */
function quarters(built: KvmTables, { frame }: KvmRoot): (KvmTable | undefined)[] | undefined {
  const root = built.tables.get(frame);
  if (root?.roleKnown !== 0) return undefined;
  return [0, 1, 2, 3].map((index) => {
    const [lo, hi] = [root.entries[2 * index]!, root.entries[2 * index + 1]!];
    return (lo & 1) === 0 ? undefined : built.tables.get((lo >>> 12) + (hi & 0xfffff) * 2 ** 20);
  });
}

function card(built: KvmTables, root: KvmRoot, isUsable: boolean): RootCardAnswer {
  const table = built.tables.get(root.frame);
  const four = quarters(built, root);
  return {
    hpa: hex(frameToAddress(root.frame)),
    ...(root.pgd === undefined ? {} : { pgd: hex(root.pgd) }),
    levels: root.levels,
    invalid: root.invalid,
    isUsable,
    table: tableQuery(root.vcpu, root.frame, root.levels),
    ...(table && table.roleKnown !== 0
      ? { role: hex(table.role), fields: roleFields(table.role, table.roleKnown), certainty: table.certainty }
      : {}),
    ...(table?.counts ? { references: table.counts.roots } : {}),
    ...(four
      ? {
          quarters: four.map((each) =>
            each
              ? {
                  hpa: hex(frameToAddress(each.frame)),
                  gfn: hex(each.gfn),
                  role: hex(each.role),
                  words: roleWords(each.role, each.roleKnown),
                  table: tableQuery(root.vcpu, each.frame, kvmLevel(each)),
                }
              : null,
          ),
        }
      : {}),
  };
}

function registersOf(machine: Machine, vcpu: number): Registers {
  const { mirror } = machine;
  if (!mirror) return machine.vcpu(vcpu).registers;
  const told = mirror.regimes[vcpu]?.registers ?? [];
  const value = (name: RegisterName): bigint => told.find((each) => each.name === name.toUpperCase())?.value ?? 0n;
  return { ...UNPAGED, cr0: value('cr0'), cr3: value('cr3'), cr4: value('cr4'), efer: value('efer') };
}

function vcpuRoots(machine: Machine, built: KvmTables, vcpu: number): VcpuRootsAnswer {
  const registers = registersOf(machine, vcpu);
  const cpu = cpuRole(registers, !machine.mirror && machine.vcpu(vcpu).guestMode !== undefined);
  const at = (which: KvmRoot['which']): KvmRoot | undefined =>
    built.roots.find((root) => root.vcpu === vcpu && root.which === which);
  const current = at('current');
  const currentRole = current && built.tables.get(current.frame)?.role;
  const wanted = machine.mirror
    ? (currentRole ?? (built.kind === 'shadow' ? shadowRootRole(cpu) : 0))
    : machine.vcpu(vcpu).mmu.rootRole;
  const isUsable = (root: KvmRoot): boolean => {
    const role = built.tables.get(root.frame)?.role;
    if (role === undefined || role !== wanted || root.invalid) return false;
    return roleField(wanted, 'direct') === 1 || root.pgd === registers.cr3;
  };
  return {
    vcpu,
    cr3: hex(registers.cr3),
    cpuRole: { word: hex(cpu.base), fields: roleFields(cpu.base, 0xffff_ffff) },
    extRole: extFields(cpu.ext),
    rootRole: { word: hex(wanted), fields: roleFields(wanted, 0xffff_ffff) },
    roots: (['current', 0, 1, 2] as const).map((which) => {
      const root = at(which);
      return root ? card(built, root, isUsable(root)) : null;
    }),
  };
}

function shadowPages(built: KvmTables): ShadowPageAnswer[] {
  return [...built.tables.values()]
    .filter(({ roleKnown }) => roleKnown !== 0)
    .sort((a, b) => a.gfn - b.gfn || kvmLevel(b) - kvmLevel(a) || a.role - b.role)
    .map((page) => ({
      hpa: hex(frameToAddress(page.frame)),
      gfn: hex(page.gfn),
      level: kvmLevel(page),
      role: hex(page.role),
      fields: roleFields(page.role, page.roleKnown),
      words: roleWords(page.role, page.roleKnown),
      certainty: page.certainty,
      roots: page.counts?.roots ?? 0,
      unsync: page.counts?.unsync ?? false,
      unsyncChildren: page.counts?.unsyncChildren ?? 0,
      writeFlooding: page.counts?.writeFlooding ?? 0,
      table: tableQuery(0, page.frame, kvmLevel(page)),
    }));
}

/** The bits with names that a write changes: ` (wp 1 → 0)`. */
function changedBits(name: RegisterName, old: bigint, now: bigint): string {
  const words = Object.entries(REGISTER_BITS[name] ?? {}).flatMap(([bit, position]) => {
    const [before, after] = [old, now].map((value) => (value >> BigInt(position)) & 1n);
    return before === after ? [] : [`${bit} ${before} → ${after}`];
  });
  return words.length === 0 ? '' : ` (${words.join(', ')})`;
}

/** What a vCPU's roots were, after each change that the log remembers, with the register write that led to it. */
function moments(machine: Machine): { readonly list: RootCacheMoment[]; readonly more: boolean } {
  const { log } = machine;
  const list: RootCacheMoment[] = [];
  const causes = new Map<number, { readonly step: number; readonly words: string }>();
  for (let position = log.first; position < log.length; position++) {
    const kind = log.kindAt(position);
    if (kind !== Kind.REGISTER && kind !== Kind.MMU) continue;
    const entry = log.at(position);
    if (kind === Kind.REGISTER) {
      const name = REGISTERS[entry.address % 16]!;
      const [old, now] = [toBigint(entry.oldLo, entry.oldHi), toBigint(entry.newLo, entry.newHi)];
      const words = `${name} ${hex(old)} → ${hex(now)}${changedBits(name, old, now)}`;
      causes.set(Math.floor(entry.address / 16), { step: entry.step, words });
      continue;
    }
    const { before, after } = entry.object as { readonly before: Mmu; readonly after: Mmu };
    const isRoots = before.root !== after.root || before.prevRoots !== after.prevRoots;
    if (!isRoots && before.rootRole === after.rootRole && before.cpuRole === after.cpuRole) continue;
    const cause = causes.get(entry.address);
    list.push({
      step: entry.step,
      vcpu: entry.address,
      by: machine.tasks[entry.task]?.name ?? 'you',
      ...(cause ? { cause: cause.words } : {}),
      rootRole: hex(after.rootRole),
      roots: [after.root, ...after.prevRoots].map(({ pfn, pgd }) =>
        pfn < 0 ? null : { hpa: hex(frameToAddress(pfn)), pgd: hex(pgd) },
      ),
    });
  }
  return { list: list.slice(-MOMENTS_MOST), more: list.length > MOMENTS_MOST };
}

/** The root cache of every vCPU, and KVM's pages: of the emulator, or of a real KVM as it is known. */
export function rootCacheAnswer(machine: Machine): RootCacheAnswer {
  const built = machine.mirror ? machine.mirror.built?.()?.tables : emulatorBuilt(machine);
  if (!built) throw new Error('this machine does not tell of KVM’s roots');
  const vcpus = machine.mirror ? machine.mirror.regimes.length : machine.vcpus.length;
  const pages = shadowPages(built);
  const history = machine.mirror ? { list: [], more: false } : moments(machine);
  return {
    kind: 'root-cache',
    certainty: built.certainty,
    ...(built.why === '' ? {} : { why: built.why }),
    tables: built.kind,
    step: machine.steps,
    ...(machine.mirror ? {} : { policy: machine.policies.roots }),
    vcpus: Array.from({ length: vcpus }, (_, vcpu) => vcpuRoots(machine, built, vcpu)),
    pages: pages.slice(0, PAGES_MOST),
    morePages: Math.max(0, pages.length - PAGES_MOST),
    moments: history.list,
    moreMoments: history.more,
  };
}
