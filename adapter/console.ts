import type { Machine } from '../engine/machine.ts';
import { hex } from '../engine/memory/words.ts';
import { answer, type Moment } from '../engine/queries/answer.ts';
import { describeAddress, type Located, parseAddress, toHost } from './addresses.ts';

/** A command was given something it cannot use; the message is for people. */
export class CommandError extends Error {}

const HELP = `walk ADDRESS — how an address is translated
history ADDRESS — what changed there
costs — what has been counted
An address is 0x… (gpa), gva:0x…, gpa:0x…, hpa:0x…; anything else is an expression.`;

/** Runs one of the debug console's own commands. @returns undefined for anything else. @throws CommandError */
export function runCommand(machine: Machine, vcpu: number, moment: Moment, text: string): string | undefined {
  const [name, ...rest] = text.split(/\s+/);
  switch (name) {
    case 'help':
      return HELP;
    case 'costs':
      return machine
        .counterList()
        .map(([counter, value]) => `${counter.padEnd(20)} ${value}`)
        .join('\n');
    case 'walk':
      return walkText(machine, moment, located(name, rest, vcpu));
    case 'history':
      return historyText(machine, moment, located(name, rest, vcpu), rest.join(' '));
    default:
      return undefined;
  }
}

function located(name: string, words: readonly string[], vcpu: number): Located {
  const address = parseAddress(words.join(' '), 'gva', vcpu);
  if (!address) throw new CommandError(`${name} needs an address, such as 0x400000 or gpa:0x200000`);
  return address;
}

function walkText(machine: Machine, moment: Moment, { space, vcpu, address }: Located): string {
  if (space === 'hpa') return describeAddress(machine, { space, vcpu, address }).join('\n');
  const { answer: walk } = answer(machine, { kind: 'walk', vcpu, space, address: hex(address) }, moment);
  if (walk.kind !== 'walk') return walk.kind === 'error' ? walk.message : '';
  const lines = walk.references.map(
    ({ number, stage, entry, index, address: at, note, purpose }) =>
      `${String(number).padStart(2)} ${stage.padEnd(6)} ${entry.name} ${index} at ${at} = ${entry.value} ${note ?? entry.state} (${purpose})`,
  );
  return [...lines, walk.sentence].join('\n');
}

function historyText(machine: Machine, moment: Moment, address: Located, written: string): string {
  const host = toHost(machine, address);
  if (!host) throw new CommandError(`nothing is mapped at ${written}`);
  const word = (BigInt(host.pfn) << 12n) + BigInt(host.offset & ~7);
  const { answer: result } = answer(
    machine,
    { kind: 'history', space: 'hpa', address: hex(word), size: '0x8' },
    moment,
  );
  if (result.kind !== 'history') return '';
  const lines = result.changes.map(
    ({ step, task, old, new: now, what }) => `step ${step}: ${task}: ${old} → ${now} (${what})`,
  );
  return lines.join('\n') || `nothing changed since step ${result.since}`;
}
