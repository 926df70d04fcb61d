import { vmplOf } from '../engine/attributes/vmpl.ts';
import { decodeEntry } from '../engine/formats/decode.ts';
import { REGISTER_BITS, REGISTERS } from '../engine/guest/registers.ts';
import type { Machine } from '../engine/machine.ts';
import { frameToAddress, hex, hexWords } from '../engine/memory/words.ts';
import { LOCKS, type OperationFrame, type Task } from '../engine/operation.ts';
import { kvmErrorWords } from '../engine/queries/words.ts';
import { type FaultInfo, isFaultInfo } from '../engine/tdp/fault.ts';
import { spteFormat, spteNote } from '../engine/tdp/spte.ts';
import { requestWords } from '../engine/vcpu.ts';

/** A line of the Variables view. Children are made when they are asked for. */
export interface Node {
  readonly name: string;
  readonly value: string;
  readonly type?: string;
  readonly children?: () => Node[];
  /** An expression or address that evaluates to this value. */
  readonly evaluateName?: string;
  readonly memoryReference?: string;
  /** Puts a new value, from an expression's value. */
  readonly register?: { readonly vcpu: number; readonly name: string; readonly bit?: string };
}

export interface ScopeNodes {
  readonly name: string;
  readonly hint?: 'locals' | 'registers' | 'arguments';
  readonly nodes: () => Node[];
}

const leaf = (name: string, value: string, extra: Partial<Node> = {}): Node => ({ name, value, ...extra });
const address = (name: string, space: 'gpa' | 'hpa' | 'gva', value: bigint): Node =>
  leaf(name, hex(value), {
    memoryReference: space === 'gva' ? hex(value) : `${space}:${hex(value)}`,
    evaluateName: `${space}:${hex(value)}`,
    type: space,
  });

/** The scopes of a function's frame or of the statement below them. */
export function frameScopes(machine: Machine, task: Task, frame: OperationFrame | undefined): ScopeNodes[] {
  const scopes: ScopeNodes[] = [];
  if (frame) scopes.push({ name: 'Locals', hint: 'locals', nodes: () => localNodes(machine, frame.locals) });
  if (task.vcpu >= 0)
    scopes.push({ name: 'Registers', hint: 'registers', nodes: () => registerNodes(machine, task.vcpu) });
  // Of a real machine only the slots are known.
  if (machine.mirror) scopes.push({ name: 'Memslots', nodes: () => slotNodes(machine) });
  else scopes.push({ name: 'MMU', nodes: () => mmuNodes(machine, task) });
  scopes.push({
    name: 'Costs',
    nodes: () => machine.counterList().map(([name, value]) => leaf(name, `${value}`, { evaluateName: name })),
  });
  return scopes;
}

/** The scopes of a CPU that does not run. */
export function mirrorScopes(machine: Machine, task: Task): ScopeNodes[] {
  const { registers } = machine.mirror!.regimes[task.vcpu]!;
  return [
    {
      name: 'Registers',
      hint: 'registers',
      nodes: () => registers.map(({ name, value }) => leaf(name, hex(value), { evaluateName: name })),
    },
    {
      name: 'Memory',
      nodes: () =>
        machine.slots.list.map((slot) => {
          const start = frameToAddress(slot.base);
          const end = start + frameToAddress(slot.pages) - 1n;
          return leaf(`range ${slot.id}`, `${hex(start)} … ${hex(end)}`, { memoryReference: `hpa:${hex(start)}` });
        }),
    },
  ];
}

function registerNodes(machine: Machine, vcpu: number): Node[] {
  const { registers } = machine.vcpu(vcpu);
  return REGISTERS.map((name) => {
    const bits = REGISTER_BITS[name];
    return leaf(name, hex(registers[name]), {
      evaluateName: `vcpu[${vcpu}].${name}`,
      register: { vcpu, name },
      ...(name === 'cr3' ? { memoryReference: `gpa:${hex(registers.cr3 & ~0xfffn)}` } : {}),
      ...(bits
        ? {
            children: () =>
              Object.entries(bits).map(([bit, number]) =>
                leaf(bit, `${(registers[name] >> BigInt(number)) & 1n}`, {
                  evaluateName: `vcpu[${vcpu}].${name}.${bit}`,
                  register: { vcpu, name, bit },
                }),
              ),
          }
        : {}),
    });
  });
}

function mmuNodes(machine: Machine, task: Task): Node[] {
  const { seq, inProgress, start, end } = machine.invalidation;
  const nodes: Node[] = [];
  if (task.vcpu >= 0) {
    const vcpu = machine.vcpu(task.vcpu);
    nodes.push(
      vcpu.root < 0
        ? leaf('root', 'none: loaded at the next entry')
        : address('root', 'hpa', frameToAddress(vcpu.root)),
      leaf('requests', requestWords(vcpu.requests)),
      ...(machine.vm === 'snp' ? [leaf('VMPL', `${vmplOf(machine, vcpu.id)}`)] : []),
      leaf('TLB', `${vcpu.tlb.count} entries`, {
        children: () =>
          vcpu.tlb
            .list()
            .map((entry) =>
              leaf(
                hex(frameToAddress(entry.vfn)),
                `→ gpa ${hex(frameToAddress(entry.gfn))} → hpa ${hex(frameToAddress(entry.pfn))}, level ${entry.level}${entry.dirty ? ', writable' : ''}`,
              ),
            ),
      }),
    );
    if (task.cr2 !== 0n) nodes.push(address('cr2', 'gva', task.cr2));
  }
  for (const lock of LOCKS) {
    // The module’s lock is there with the module alone.
    if (lock === 'sept_lock' && machine.vm !== 'tdx') continue;
    const owners = machine.owners(lock).map((owner) => owner.name);
    const mode = machine.locks[LOCKS.indexOf(lock)]!.writer >= 0 ? 'for writing' : 'for reading';
    nodes.push(
      leaf(
        lock,
        owners.length === 0 ? 'free' : `held ${lock === 'slots_lock' ? '' : `${mode} `}by ${owners.join(', ')}`,
      ),
    );
  }
  nodes.push(
    leaf('mmu_invalidate_seq', `${seq}`, { evaluateName: 'mmu_invalidate_seq' }),
    leaf(
      'mmu_invalidate_in_progress',
      inProgress === 0 ? '0' : `${inProgress}: gpa ${hex(frameToAddress(start))} … ${hex(frameToAddress(end))}`,
    ),
    leaf('memslots', `${machine.slots.list.length}, generation ${machine.slots.generation}`, {
      children: () => slotNodes(machine),
    }),
  );
  return nodes;
}

function slotNodes(machine: Machine): Node[] {
  return machine.slots.list.map((slot) =>
    leaf(
      `slot ${slot.id}`,
      `gpa ${hex(frameToAddress(slot.base))} + ${hex(slot.pages * 4096)}${slot.readonly ? ', read-only' : ''}${slot.logDirty ? ', dirty log' : ''}${slot.invalid ? ', invalid' : ''}`,
      {
        memoryReference: `gpa:${hex(frameToAddress(slot.base))}`,
      },
    ),
  );
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

/** Locals as the kernel would name and print them: frames as addresses, entries decoded, errors in words. */
function localNodes(machine: Machine, locals: object): Node[] {
  const values = locals as Record<string, unknown>;
  const nodes: Node[] = [];
  const hasEntry =
    typeof values.lo === 'number' &&
    typeof values.hi === 'number' &&
    typeof values.level === 'number' &&
    typeof values.table === 'number' &&
    values.table > 0;
  if (hasEntry)
    nodes.push(
      ...entryNodes(machine, values as { lo: number; hi: number; level: number; table: number; index: number }),
    );
  for (const [name, value] of Object.entries(values)) {
    if (hasEntry && ['lo', 'hi', 'level', 'table', 'index', 'newLo', 'newHi'].includes(name)) continue;
    nodes.push(valueNode(machine, name, value));
  }
  return nodes;
}

function entryNodes(
  machine: Machine,
  entry: { lo: number; hi: number; level: number; table: number; index: number },
): Node[] {
  const format = machine.secondFormat;
  const decoded = decodeEntry(format, entry.level, entry.lo, entry.hi);
  const note = spteNote(spteFormat(format), entry.lo, entry.hi);
  return [
    leaf('level', `${entry.level} (${decoded.name})`),
    address('sptep', 'hpa', frameToAddress(entry.table, entry.index * 8)),
    leaf('old_spte', `${hexWords(entry.lo, entry.hi)} ${note ?? decoded.state}`, {
      children: () =>
        decoded.fields.map((field) =>
          leaf(field.name, field.words, { type: `bits ${field.bits.join(':')}: ${field.meaning}` }),
        ),
    }),
  ];
}

function valueNode(machine: Machine, name: string, value: unknown): Node {
  if (isFaultInfo(value)) return leaf(name, value.reason, { children: () => faultNodes(value) });
  if (typeof value === 'bigint') {
    // What faulted is an address of the kind that KVM's tables translate.
    const space = name === 'addr' ? (machine.isTdp ? 'gpa' : 'gva') : name;
    return space === 'gpa' || space === 'gva' ? address(name, space, value) : leaf(name, hex(value));
  }
  if (typeof value === 'number') {
    if (['gfn', 'start', 'end', 'next'].includes(name))
      return value < 0
        ? leaf(name, 'none')
        : leaf(name, hex(value), { memoryReference: `gpa:${hex(frameToAddress(value))}` });
    if (name === 'pfn' || name === 'root')
      return value < 0
        ? leaf(name, 'none')
        : leaf(name, hex(value), { memoryReference: `hpa:${hex(frameToAddress(value))}` });
    return leaf(name, `${value}`);
  }
  if (Array.isArray(value))
    return leaf(name, `${value.length} items`, {
      children: () => value.map((item, index) => valueNode(machine, `${index}`, item)),
    });
  if (isRecord(value)) return leaf(name, '', { children: () => localNodes(machine, value) });
  return leaf(name, value === null || value === undefined ? 'none' : String(value));
}

function faultNodes(fault: FaultInfo): Node[] {
  return [
    leaf('kind', fault.kind),
    leaf('access', `${fault.access}${fault.implicit ? ', implicit' : ''} at CPL ${fault.cpl}`),
    address('gva', 'gva', fault.gva),
    ...(fault.gpa === undefined ? [] : [address('gpa', 'gpa', fault.gpa)]),
    leaf('error_code', kvmErrorWords(fault.errorCode)),
    ...(fault.kind === 'guest'
      ? []
      : [leaf(fault.exitInfo === 0 ? 'exit info' : 'exit qualification', hex(fault.exitInfo))]),
    leaf('level', `${fault.level}`),
    leaf('index', `${fault.index}`),
    leaf('entry', hexWords(fault.lo, fault.hi)),
  ];
}
