import { REGISTER_BITS, REGISTERS, type RegisterName, type Registers, UNPAGED } from '../guest/registers.ts';
import { Kind } from '../history/log.ts';
import { ROLE_FIELDS, type RoleField, roleField, roleWords } from '../kernel/role.ts';
import { type KvmRoles, type KvmRoot, type KvmTable, type KvmTables, kvmLevel } from '../kernel/tables.ts';
import type { Machine } from '../machine.ts';
import { frameToAddress, hex, toBigint } from '../memory/words.ts';
import type { Mmu } from '../roots/mmu.ts';
import { cpuRole, EXT_ROLE_FIELDS, extRoleLayout, shadowRootRole } from '../roots/role.ts';
import { MMUS, REQ_MMU_FREE_OBSOLETE_ROOTS, REQ_TLB_FLUSH_GUEST, type Vcpu } from '../vcpu.ts';
import type {
  RoleAnswer,
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

function extFields(ext: number, is2022: boolean): RoleFieldAnswer[] {
  return extRoleLayout(is2022).map((name) => ({ name, value: (ext >> EXT_ROLE_FIELDS[name]) & 1 }));
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

const roleAnswer = (word: number): RoleAnswer => ({ word: hex(word), fields: roleFields(word, 0xffff_ffff) });

/** Of the emulator, whose MMUs are known in whole. */
function emulatedRoots(machine: Machine, built: KvmTables, vcpu: Vcpu, mmu: 'root' | 'guest'): VcpuRootsAnswer {
  const { rootRole, cpuRole: cpu, root } = vcpu.mmus[mmu];
  const active = vcpu.active === mmu;
  const nested = mmu === 'guest';
  const { second } = machine.config;
  // L1's registers while it is L1's MMU that is looked at.
  const { cr3 } = nested || active ? vcpu.registers : vcpu.guestMode!.l1;
  const pgd = nested ? (vcpu.guestMode?.nested?.pgd ?? root.pgd) : cr3;
  return {
    vcpu: vcpu.id,
    mmu,
    active,
    pgd: hex(pgd),
    pgdName: nested ? (second === 'ept' ? 'EPTP' : 'nCR3') : 'CR3',
    cpuRole: roleAnswer(cpu.base),
    extRole: extFields(cpu.ext, machine.policies.roots !== 'today'),
    rootRole: roleAnswer(rootRole),
    ...(nested ? { nestedRole: roleAnswer(vcpu.mmus.nested.cpuRole.base) } : {}),
    roots: rootCards(built, vcpu.id, mmu, rootRole, pgd),
  };
}

/** The current root and three before it. */
function rootCards(
  built: KvmTables,
  vcpu: number,
  mmu: 'root' | 'guest',
  wanted: number,
  pgd: bigint,
): (RootCardAnswer | null)[] {
  const isUsable = (root: KvmRoot): boolean => {
    const role = built.tables.get(root.frame)?.role;
    if (role === undefined || role !== wanted || root.invalid) return false;
    return roleField(wanted, 'direct') === 1 || root.pgd === pgd;
  };
  return (['current', 0, 1, 2] as const).map((which) => {
    const root = built.roots.find((each) => each.vcpu === vcpu && each.which === which && (each.mmu ?? 'root') === mmu);
    return root ? card(built, root, isUsable(root)) : null;
  });
}

/** Of a real KVM: roles as the kernel's memory has them; else what follows from registers and roots. */
function mirroredRoots(machine: Machine, built: KvmTables, vcpu: number): VcpuRootsAnswer[] {
  const own = built.roots.filter((root) => root.vcpu === vcpu);
  const isNested = own.some(({ mmu, inactive }) => mmu === 'guest' && !inactive);
  const registers = registersOf(machine, vcpu);
  const cpu = cpuRole(registers, { guestMode: isNested, smm: false });
  return (['root', 'guest'] as const)
    .filter((mmu) => mmu === 'root' || own.some((root) => root.mmu === 'guest'))
    .map((mmu) => {
      const current = own.find((root) => root.which === 'current' && (root.mmu ?? 'root') === mmu);
      const told = (name: KvmRoles['mmu']): KvmRoles | undefined =>
        built.roles?.find((each) => each.vcpu === vcpu && each.mmu === name);
      const kernel = told(mmu);
      const nested = mmu === 'guest' ? told('nested') : undefined;
      const role = current && built.tables.get(current.frame)?.role;
      const wanted = kernel?.rootRole ?? role ?? (built.kind === 'shadow' ? shadowRootRole(cpu) : 0);
      const cpuRoleNow = kernel?.cpuRole ?? cpu;
      const active = (mmu === 'guest') === isNested;
      const pgd = active && mmu === 'root' ? registers.cr3 : (current?.pgd ?? 0n);
      return {
        vcpu,
        mmu,
        active,
        pgd: hex(pgd),
        pgdName: mmu === 'root' ? 'CR3' : built.kind === 'ept' ? 'EPTP' : 'nCR3',
        cpuRole: roleAnswer(cpuRoleNow.base),
        extRole: extFields(cpuRoleNow.ext, false),
        rootRole: roleAnswer(wanted),
        ...(nested && nested.cpuRole.base !== 0 ? { nestedRole: roleAnswer(nested.cpuRole.base) } : {}),
        ...(kernel ? {} : { rolesAreInferred: true as const }),
        roots: rootCards(built, vcpu, mmu, wanted, pgd),
      };
    });
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
      ...(page.counts?.nxDisallowed ? { nxDisallowed: true as const } : {}),
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

const CAUSES = new Set<Kind>([
  Kind.REGISTER,
  Kind.MMU,
  Kind.GUEST_MODE,
  Kind.SMM,
  Kind.CPUID,
  Kind.INVALIDATION,
  Kind.REQUESTS,
]);

/** Requests by which a vCPU gives up roots that somebody else has taken out of use, or that its guest has flushed. */
const ROOT_REQUESTS: readonly (readonly [number, string])[] = [
  [REQ_MMU_FREE_OBSOLETE_ROOTS, 'KVM_REQ_MMU_FREE_OBSOLETE_ROOTS'],
  [REQ_TLB_FLUSH_GUEST, 'KVM_REQ_TLB_FLUSH_GUEST'],
];

/** What a vCPU's roots were, after each change that the log remembers, with the register write, instruction or request that led to it. */
function moments(machine: Machine): { readonly list: RootCacheMoment[]; readonly more: boolean } {
  const { log } = machine;
  const list: RootCacheMoment[] = [];
  const causes = new Map<number, { readonly step: number; readonly words: string }>();
  /** Who asked for a request, by vCPU and request. */
  const askers = new Map<string, string>();
  for (let position = log.first; position < log.length; position++) {
    const kind = log.kindAt(position);
    if (!CAUSES.has(kind)) continue;
    const entry = log.at(position);
    // nested_mmu has no roots.
    if (kind === Kind.MMU && MMUS[entry.oldLo] === 'nested') continue;
    if (kind === Kind.CPUID) {
      for (const { id } of machine.vcpus) causes.set(id, { step: entry.step, words: 'another CPUID' });
      continue;
    }
    if (kind === Kind.INVALIDATION) {
      causes.set(entry.address, { step: entry.step, words: entry.object as string });
      continue;
    }
    if (kind === Kind.REQUESTS) {
      const [before, after] = [entry.oldLo, entry.newLo];
      for (const [request, name] of ROOT_REQUESTS) {
        const key = `${entry.address} ${request}`;
        const asker = machine.tasks[entry.task];
        if ((after & ~before & request) !== 0) {
          // Of its own register writes and instructions the vCPU knows better.
          if (asker && asker.vcpu !== entry.address) askers.set(key, `${name}, which ${asker.name} asked for`);
          else askers.delete(key);
        } else if ((before & ~after & request) !== 0 && askers.has(key))
          causes.set(entry.address, { step: entry.step, words: askers.get(key)! });
      }
      continue;
    }
    if (kind === Kind.SMM) {
      const { after } = entry.object as { readonly after: Pick<Vcpu, 'smm'> };
      causes.set(entry.address, { step: entry.step, words: after.smm ? 'a system-management interrupt' : 'RSM' });
      continue;
    }
    if (kind === Kind.GUEST_MODE) {
      const { before, after } = entry.object as Record<'before' | 'after', Pick<Vcpu, 'guestMode'>>;
      const words = after.guestMode ? `L1 runs ${after.guestMode.guest}` : `${before.guestMode!.guest} exits to L1`;
      causes.set(entry.address, { step: entry.step, words });
      continue;
    }
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
      mmu: entry.oldLo === MMUS.indexOf('guest') ? 'guest' : 'root',
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
  const { mirror } = machine;
  const vcpus = mirror
    ? mirror.regimes.flatMap((_, vcpu) => mirroredRoots(machine, built, vcpu))
    : machine.vcpus.flatMap((vcpu) =>
        (['root', 'guest'] as const)
          .filter((mmu) => mmu === 'root' || roleField(vcpu.mmus.guest.rootRole, 'level') !== 0)
          .map((mmu) => emulatedRoots(machine, built, vcpu, mmu)),
      );
  const pages = shadowPages(built);
  const history = machine.mirror ? { list: [], more: false } : moments(machine);
  return {
    kind: 'root-cache',
    certainty: built.certainty,
    ...(built.why === '' ? {} : { why: built.why }),
    tables: built.kind,
    step: machine.steps,
    ...(machine.mirror ? {} : { policy: machine.policies.roots }),
    vcpus,
    pages: pages.slice(0, PAGES_MOST),
    morePages: Math.max(0, pages.length - PAGES_MOST),
    moments: history.list,
    moreMoments: history.more,
  };
}
