import { type DecodedEntry, decodeEntry } from '../engine/formats/decode.ts';
import { untranslatable } from '../engine/guest/access.ts';
import { l1Frame, lookAtNested } from '../engine/guest/nested.ts';
import type { Reference } from '../engine/guest/walk.ts';
import type { Machine } from '../engine/machine.ts';
import { addressToFrame, formatSize, frameToAddress, hex, pageOffset } from '../engine/memory/words.ts';
import { nowhereWords } from '../engine/mirror.ts';
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
  if (located.space === 'gva' && machine.mirror) {
    const regime = machine.mirror.regimes[located.vcpu];
    const walk = regime?.walk(machine.mirror.memory, located.address, { kind: 'read', user: false, look: true });
    if (walk?.gpa === undefined || walk.end !== 'done') return undefined;
    gfn = addressToFrame(walk.gpa);
  } else if (located.space === 'gva') {
    if (untranslatable(machine.vcpu(located.vcpu).mode, located.address) !== undefined) return undefined;
    const walk = softTranslate(machine, located.vcpu, located.address);
    if (walk.status !== 'done') return undefined;
    gfn = walk.gfn;
  }
  const nested = machine.vcpus[located.vcpu]?.guestMode?.nested;
  const own = nested ? l1Frame(machine, nested.mode, gfn) : gfn;
  const pfn = own < 0 ? -1 : machine.resolve(own);
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
 * What an address means, in lines. The first names the space, gives the translation as far as it goes, and offers the
 * other spaces; the rest are the entries that decide it.
 */
export function describeAddress(machine: Machine, located: Located): string[] {
  const { space, address, vcpu } = located;
  if (machine.mirror) return describeMirrored(machine, located);
  if (space === 'hpa') return describeHost(machine, address);
  const others = space === 'gva' ? '[also gpa:, hpa:]' : '[also gva:, hpa:]';
  if (space === 'gpa') {
    const { end, lines } = describeGuestPhysical(machine, vcpu, address);
    return [`gpa ${groups(address)} ${end} ${others}`, ...lines];
  }
  const title = `gva ${groups(address)} (vCPU ${vcpu})`;
  const problem = untranslatable(machine.vcpu(vcpu).mode, address);
  if (problem !== undefined) return [`${title}: ${problem} ${others}`];
  const trace: Reference[] = [];
  const walk = softTranslate(machine, vcpu, address, trace);
  const { format } = machine.vcpu(vcpu).mode;
  const lines = trace.map(({ level, index, lo, hi }) => entryLine(decodeEntry(format, level, lo, hi), index));
  if (walk.status !== 'done') return [`${title}: not mapped by the guest ${others}`, ...lines];
  const gpa = frameToAddress(walk.gfn, pageOffset(address));
  const second = describeGuestPhysical(machine, vcpu, gpa);
  return [`${title} → gpa ${groups(gpa)} ${second.end} ${others}`, ...lines, ...second.lines];
}

/** The same in a machine that is mirrored: the walk's own sentence, and the entries that it read. */
function describeMirrored(machine: Machine, { space, address, vcpu }: Located): string[] {
  if (space === 'hpa') {
    const there = machine.mirror!.memory.has(addressToFrame(address));
    return [`hpa ${groups(address)}: ${there ? 'there is memory' : nowhereWords(machine.mirror!)}`];
  }
  const query = { kind: 'walk', vcpu, space, address: hex(address) } as const;
  const { answer: walk } = answer(machine, query, { since: 0, fault: undefined });
  if (walk.kind !== 'walk') return walk.kind === 'error' ? [walk.message] : [];
  const others = space === 'gva' ? '[also gpa:, hpa:]' : '[also gva:, hpa:]';
  const { gpa, hpa, status, reason } = walk.outcome;
  const to = [...(space === 'gva' && gpa !== undefined ? [`gpa ${groups(BigInt(gpa))}`] : [])];
  if (hpa !== undefined && walk.second !== 'none') to.push(`hpa ${groups(BigInt(hpa))}`);
  const unbuilt = walk.second !== 'none' && hpa === undefined ? ', which KVM has not mapped' : '';
  const end =
    status !== 'done'
      ? `: ${reason}`
      : to.length > 0
        ? ` → ${to.join(' → ')}${unbuilt}`
        : `: ${unbuilt === '' ? reason : 'KVM has not mapped it'}`;
  const title = `${space} ${groups(address)}${space === 'gva' ? ` (CPU ${vcpu})` : ''}`;
  // Of a walk in two dimensions, the second is told for the address itself alone.
  const told = walk.references.filter(({ stage, forLevel }) => stage === 'guest' || forLevel === 0);
  const lines = told.map(({ stage, entry, index, note, certainty }) => {
    const doubt = certainty === undefined ? '' : ` (${certainty})`;
    return `${stage === 'second' && machine.mirror!.built ? 'KVM ' : ''}${entryLine(entry, index, note)}${doubt}`;
  });
  const place =
    machine.mirror!.places === 'memslots' && gpa !== undefined && status === 'done'
      ? [slotWords(machine, BigInt(gpa))]
      : [];
  return [`${title}${end} ${others}`, ...lines, ...place];
}

function slotWords(machine: Machine, gpa: bigint): string {
  const slot = machine.slots.find(addressToFrame(gpa));
  return slot
    ? `slot ${slot.id}: gpa ${groups(frameToAddress(slot.base))} + ${formatSize(slot.pages * 4096)}${slot.readonly ? ', read-only' : ''}`
    : 'no memslot holds it: an access is MMIO';
}

function entryLine(entry: DecodedEntry, index: number, note?: string): string {
  const what =
    note ??
    (entry.state === 'absent'
      ? 'not present'
      : entry.state === 'malformed'
        ? `refused: ${entry.problems.join(', ')}`
        : [`${entry.rights} ${entry.state}${entry.size ? ` ${formatSize(entry.size)}` : ''}`, ...entry.problems].join(
            ', ',
          ));
  return `${entry.name} ${index} = ${groups(BigInt(entry.value))} ${what}`;
}

/** The second stage and the slot of a guest-physical address: the end of the first line, and the lines below it. */
function describeGuestPhysical(machine: Machine, vcpu: number, gpa: bigint): { end: string; lines: string[] } {
  const { answer: walk } = answer(
    machine,
    { kind: 'walk', vcpu, space: 'gpa', address: hex(gpa) },
    { since: machine.log.length, fault: undefined },
  );
  if (walk.kind !== 'walk') return { end: '', lines: walk.kind === 'error' ? [walk.message] : [] };
  const lines = walk.references.map((reference) => entryLine(reference.entry, reference.index, reference.note));
  const { outcome } = walk;
  const { guestMode } = machine.vcpu(vcpu);
  const nested = guestMode?.nested;
  if (nested) {
    // L1's tables say which of L1's addresses it is; KVM's are made of them.
    const trace: Reference[] = [];
    const through = lookAtNested(machine, nested.mode, addressToFrame(gpa), trace);
    const own = trace.map(({ level, index, lo, hi }) =>
      entryLine(decodeEntry(nested.mode.format, level, lo, hi), index),
    );
    if (through.status !== 'done') return { end: `: L1’s tables do not map it`, lines: [...own, ...lines] };
    const l1 = frameToAddress(through.gfn, pageOffset(gpa));
    const to =
      outcome.status === 'done' && outcome.hpa !== undefined
        ? `→ hpa ${groups(BigInt(outcome.hpa))}`
        : `: ${outcome.reason}`;
    return {
      end: `of ${guestMode.guest} → L1’s gpa ${groups(l1)} ${to}`,
      lines: [...own, ...lines, slotWords(machine, l1)],
    };
  }
  return {
    end: outcome.status === 'done' ? `→ hpa ${groups(BigInt(outcome.hpa!))}` : `: ${outcome.reason}`,
    lines: [...lines, slotWords(machine, gpa)],
  };
}

function describeHost(machine: Machine, address: bigint): string[] {
  const pfn = addressToFrame(address);
  const table = machine.pages.get(pfn);
  const title = `hpa ${groups(address)}`;
  if (table) {
    return [
      `${title}: entry ${pageOffset(address) >> 3} of KVM’s level-${table.level} table${(table.shadow ? table.rootCount > 0 : table.parent < 0) ? ' (a root)' : ''}`,
      `covers gpa ${groups(BigInt(table.gfn) << 12n)} onwards`,
      `value ${groups(machine.readEntry(pfn, pageOffset(address) >> 3))}`,
    ];
  }
  const gfn = machine.gfnOf(pfn);
  return gfn < 0
    ? [`${title}: backs no guest memory`]
    : [`${title} backs gpa ${groups((BigInt(gfn) << 12n) + BigInt(pageOffset(address)))}`];
}
