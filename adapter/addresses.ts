import { isUntranslatable } from '../engine/guest/access.ts';
import type { Machine } from '../engine/machine.ts';
import { addressToFrame, hex, pageOffset } from '../engine/memory/words.ts';
import { answer } from '../engine/queries/answer.ts';
import { softTranslate } from '../engine/queries/translate.ts';

/** An address and the space it lives in. Plain `0x…` is the given default. */
export interface Located {
  readonly space: 'gva' | 'gpa' | 'hpa';
  readonly vcpu: number;
  readonly address: bigint;
}

const PATTERN = /^(?:(gva)(?::(\d+))?:|(gpa):|(hpa):)?\s*(0x[0-9a-f_]+|\d[\d_]*)$/i;

/** Reads `0x…`, `gva:0x…`, `gva:VCPU:0x…`, `gpa:0x…` or `hpa:0x…`; undefined for anything else. */
export function parseAddress(text: string, space: Located['space'], vcpu: number): Located | undefined {
  const match = PATTERN.exec(text.trim());
  if (!match) return undefined;
  const address = BigInt(match[5]!.replaceAll('_', ''));
  if (address >= 1n << 64n) return undefined;
  if (match[1]) return { space: 'gva', vcpu: match[2] === undefined ? vcpu : Number(match[2]), address };
  if (match[3]) return { space: 'gpa', vcpu, address };
  if (match[4]) return { space: 'hpa', vcpu, address };
  return { space, vcpu, address };
}

/** The host frame and offset behind an address; undefined when nothing is mapped there. */
export function toHost(
  machine: Machine,
  located: Located,
): { readonly pfn: number; readonly offset: number } | undefined {
  const offset = pageOffset(located.address);
  const frame = addressToFrame(located.address);
  if (located.space === 'hpa') return frame < 2 ** 40 ? { pfn: frame, offset } : undefined;
  let gfn = frame;
  if (located.space === 'gva') {
    if (isUntranslatable(machine.vcpu(located.vcpu), located.address) !== undefined) return undefined;
    const walk = softTranslate(machine, located.vcpu, located.address);
    if (walk.status !== 'done') return undefined;
    gfn = walk.gfn;
  }
  const pfn = machine.resolve(gfn);
  return pfn < 0 ? undefined : { pfn, offset };
}

const groups = (value: bigint): string => {
  const digits = value.toString(16);
  return digits.length <= 4
    ? `0x${digits}`
    : `0x${digits
        .padStart(Math.ceil(digits.length / 4) * 4, '0')
        .replace(/(?!^)(?=(?:.{4})+$)/g, '_')
        .replace(/^0+(?=[^_])/, '')}`;
};

/**
 * What an address means, in lines: the first names the space and the translation, the rest the entries that decide it.
 * The last line names the other spaces that one may ask for.
 */
export function describeAddress(machine: Machine, located: Located): string[] {
  const { space, address } = located;
  if (space === 'hpa') return describeHost(machine, address);
  const { answer: walk } = answer(
    machine,
    { kind: 'walk', vcpu: located.vcpu, space, address: hex(address) },
    { since: machine.log.length, fault: undefined },
  );
  if (walk.kind !== 'walk') return [walk.kind === 'error' ? walk.message : ''];
  const title = space === 'gva' ? `gva ${groups(address)} (vCPU ${located.vcpu})` : `gpa ${groups(address)}`;
  const lines: string[] = [];
  const { outcome } = walk;
  if (outcome.status === 'done') {
    const gpa = space === 'gva' ? ` → gpa ${groups(BigInt(outcome.gpa!))}` : '';
    lines.push(`${title}${gpa} → hpa ${groups(BigInt(outcome.hpa!))}`);
  } else if (outcome.status === 'no-root')
    lines.push(`${title}${space === 'gva' ? ` → gpa ${groups(BigInt(outcome.gpa!))}` : ''}: ${outcome.reason}`);
  else lines.push(`${title}: ${outcome.reason}`);
  if (space === 'gpa') {
    const slot = machine.slots.find(addressToFrame(address));
    lines.push(
      slot
        ? `slot ${slot.id}, gpa ${groups(BigInt(slot.base) << 12n)} + ${groups(BigInt(slot.pages) << 12n)}${slot.readonly ? ', read-only' : ''}`
        : 'no memslot holds it',
    );
  }
  for (const reference of walk.references) {
    // A guest walk names the guest's entries; the second stage is shown for the page itself.
    if (reference.stage === 'second' && reference.forLevel > 0) continue;
    lines.push(
      `${reference.entry.name} ${reference.index} = ${groups(BigInt(reference.entry.value))} ${reference.note ?? (reference.entry.state === 'absent' ? 'not present' : `${reference.entry.rights} ${reference.entry.state}`)}`,
    );
  }
  lines.push(
    space === 'gva'
      ? 'also: gpa:… hpa:… for this number in another space'
      : 'also: gva:… hpa:… for this number in another space',
  );
  return lines;
}

function describeHost(machine: Machine, address: bigint): string[] {
  const pfn = addressToFrame(address);
  const table = machine.pages.get(pfn);
  const title = `hpa ${groups(address)}`;
  if (table) {
    return [
      `${title}: entry ${pageOffset(address) >> 3} of KVM’s level-${table.level} table${table.parent < 0 ? ' (a root)' : ''}`,
      `covers gpa ${groups(BigInt(table.gfn) << 12n)} onwards`,
      `value ${groups(machine.readEntry(pfn, pageOffset(address) >> 3))}`,
    ];
  }
  const gfn = machine.gfnOf(pfn);
  return gfn < 0
    ? [`${title}: backs no guest memory`]
    : [`${title} backs gpa ${groups((BigInt(gfn) << 12n) + BigInt(pageOffset(address)))}`];
}
