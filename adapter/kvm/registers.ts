import { REGISTER_BITS, type Registers } from '../../engine/guest/registers.ts';
import { hex } from '../../engine/memory/words.ts';
import type { Node } from '../variables.ts';

/** A vCPU's registers as the helper names them. */
export type RegisterValues = ReadonlyMap<string, bigint>;

export const GENERAL = [
  'rip',
  'rsp',
  'eflags',
  'rax',
  'rbx',
  'rcx',
  'rdx',
  'rsi',
  'rdi',
  'rbp',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
] as const;
const SYSTEM = ['cr0', 'cr2', 'cr3', 'cr4', 'cr8', 'efer'] as const;
const SEGMENTS = ['cs', 'ss', 'ds', 'es', 'fs', 'gs', 'fs_base', 'gs_base', 'k_gs_base'] as const;
const TABLES = ['idt_base', 'idt_limit', 'gdt_base', 'gdt_limit', 'tr_base', 'tr_limit'] as const;
const ADDRESSES = new Set<string>(['rip', 'rsp', 'rbp', 'cr2', 'idt_base', 'gdt_base', 'tr_base']);

/** Bits that have names, by the helper's register. */
export const BITS: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  cr0: REGISTER_BITS.cr0!,
  cr4: REGISTER_BITS.cr4!,
  efer: REGISTER_BITS.efer!,
  eflags: { cf: 0, zf: 6, sf: 7, tf: 8, if: 9, df: 10, of: 11, ac: 18 },
};

/** What translation needs of them. */
export function translationRegisters(values: RegisterValues): Registers {
  const value = (name: string): bigint => values.get(name) ?? 0n;
  return {
    cr0: value('cr0'),
    cr3: value('cr3'),
    cr4: value('cr4'),
    efer: value('efer'),
    rflags: value('eflags'),
    pkru: 0n,
    cpl: value('cs') & 3n,
  };
}

/** Lines of the Variables view: the registers that everybody looks at, and the rest in groups. */
export function registerNodes(vcpu: number, values: RegisterValues): Node[] {
  const node = (name: string): Node => {
    const value = values.get(name) ?? 0n;
    const bits = BITS[name];
    return {
      name,
      value: hex(value),
      evaluateName: name,
      register: { vcpu, name },
      ...(ADDRESSES.has(name) ? { memoryReference: hex(value) } : {}),
      ...(name === 'cr3' ? { memoryReference: `gpa:${hex(value & 0x000f_ffff_ffff_f000n)}` } : {}),
      ...(bits
        ? {
            children: () =>
              Object.entries(bits).map(([bit, number]) => ({
                name: bit,
                value: `${(value >> BigInt(number)) & 1n}`,
                evaluateName: `${name}.${bit}`,
                register: { vcpu, name, bit },
              })),
          }
        : {}),
    };
  };
  const group = (name: string, names: readonly string[]): Node => ({
    name,
    value: '',
    children: () => names.filter((each) => values.has(each)).map(node),
  });
  return [...GENERAL.map(node), ...SYSTEM.map(node), group('segments', SEGMENTS), group('tables', TABLES)];
}

/** A register, or a bit of one: `rip`, `cr0.wp`; undefined for other names. */
export function registerByPath(
  values: RegisterValues,
  path: readonly (string | bigint)[],
): bigint | boolean | undefined {
  const [written, bit] = path;
  if (typeof written !== 'string') return undefined;
  const name = written.toLowerCase() === 'rflags' ? 'eflags' : written.toLowerCase();
  if (name === 'cpl' && path.length === 1) return (values.get('cs') ?? 0n) & 3n;
  const value = values.get(name);
  if (value === undefined || path.length === 1) return value;
  const number = typeof bit === 'string' && path.length === 2 ? BITS[name]?.[bit.toLowerCase()] : undefined;
  return number === undefined ? undefined : ((value >> BigInt(number)) & 1n) !== 0n;
}
