import { decodeEntry, rightsWords } from '../../engine/formats/decode.ts';
import type { Regime, RegimeAccess, RegimeWalk } from '../../engine/guest/regime.ts';
import { formatSize, hex } from '../../engine/memory/words.ts';
import { entryWords } from './entry-words.ts';
import { IMAGE_OPTIONS, openMachine } from './image-options.ts';
import { readNumber, readOptions, UsageError } from './usage.ts';

/** `kvm-mmu walk`: how an address of an image's machine is translated, entry by entry. The exit status: 1 for a fault. */
export function walk(args: string[]): number {
  const { values, positionals } = readOptions({
    args,
    allowPositionals: true,
    options: { ...IMAGE_OPTIONS, access: { type: 'string' }, user: { type: 'boolean' }, json: { type: 'boolean' } },
  });
  const [written] = positionals;
  if (written === undefined || positionals.length > 1)
    throw new UsageError(`walk takes one address, such as 0xffffffff81000000`);
  const address = readNumber(written, 'the address');
  const kind = values.access ?? 'read';
  if (kind !== 'read' && kind !== 'write' && kind !== 'fetch')
    throw new UsageError(`--access must be read, write or fetch, not ${kind}`);
  const { image, regime } = openMachine(values);
  const user = values.user ?? false;
  const access: RegimeAccess = { kind, user, look: values.access === undefined && !user };
  const result = regime.walk(image, address, access);
  console.log(
    values.json ? JSON.stringify(walkJson(address, access, result)) : walkText(regime, address, access, result),
  );
  return result.end === 'done' ? 0 : 1;
}

function outcomeWords(regime: Regime, address: bigint, result: RegimeWalk): string {
  const asked = `${regime.stages.length > 0 ? 'gva' : 'gpa'} ${hex(address)}`;
  if (result.end !== 'done') return `${asked}: ${result.code === undefined ? '' : `${result.code}: `}${result.reason}`;
  const format = regime.stages[0]?.tree.format;
  const rights = result.rights === undefined || !format ? '' : `, ${rightsWords(format, result.rights)}`;
  const page = result.guestSize === undefined ? '' : ` (${formatSize(result.guestSize)} page${rights})`;
  const parts = [`${asked} is`];
  if (regime.stages.length > 0) parts.push(`gpa ${hex(result.gpa!)}${page}`);
  if (regime.second) {
    const size = result.secondSize === undefined ? '' : ` (${formatSize(result.secondSize)} page)`;
    parts.push(`${parts.length > 1 ? 'and ' : ''}hpa ${hex(result.hpa!)}${size}`);
  }
  const there = result.reason.replace(/^the translation succeeds(, )?/, '');
  if (there !== '') parts.push(`(${there})`);
  return parts.join(' ');
}

function walkText(regime: Regime, address: bigint, access: RegimeAccess, result: RegimeWalk): string {
  const registers = regime.registers.map(({ name, value }) => `${name} ${hex(value)}`).join(', ');
  const formats = [...regime.stages, ...(regime.second ? [regime.second] : [])].map(
    ({ tree }) => tree.format.spec.title,
  );
  const who = access.look ? 'a look' : `${access.user ? 'user' : 'supervisor'} ${access.kind}`;
  const lines = [`${[...new Set(formats)].join(' on ')}; ${registers}; ${who}`];
  const width = Math.max(0, ...result.references.map((reference) => entryWords(reference).name.length));
  result.references.forEach((reference, number) => {
    const { name, value, says } = entryWords(reference);
    const at = hex(BigInt(reference.frame) * 4096n + BigInt(reference.offset));
    // Second-stage references stand further in: they serve the guest's below them.
    const indent = reference.stage === 'second' && regime.stages.length > 0 ? '    ' : '';
    lines.push(
      `${String(number + 1).padStart(3)}  ${indent}${name.padEnd(width)}  at ${at.padEnd(12)} ${value.padStart(18)}  ${says}`,
    );
  });
  lines.push(outcomeWords(regime, address, result));
  return lines.join('\n');
}

function walkJson(address: bigint, access: RegimeAccess, result: RegimeWalk) {
  return {
    address: hex(address),
    access: access.kind,
    user: access.user,
    end: result.end,
    ...(result.gpa === undefined ? {} : { gpa: hex(result.gpa) }),
    ...(result.hpa === undefined ? {} : { hpa: hex(result.hpa) }),
    ...(result.guestSize === undefined ? {} : { guestSize: result.guestSize }),
    ...(result.secondSize === undefined ? {} : { secondSize: result.secondSize }),
    ...(result.code === undefined ? {} : { code: result.code }),
    reason: result.reason,
    references: result.references.map((reference) => ({
      stage: reference.stage,
      address: hex(BigInt(reference.frame) * 4096n + BigInt(reference.offset)),
      index: reference.index,
      entry: decodeEntry(reference.format, reference.level, reference.lo, reference.hi),
    })),
  };
}
