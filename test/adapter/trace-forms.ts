import type { Recording } from '../../engine/history/recording.ts';

/** An event's fields that both of two recordings know, and the bits of its role that both know. */
function common(recording: Recording, index: number, other: Recording, otherIndex: number): string {
  const shape = recording.shape(index);
  const roleKnown = shape.roleKnown & other.shape(otherIndex).roleKnown;
  const fields = shape.tracepoint.fields.map((field, i) => {
    if (!recording.known(index, i) || !other.known(otherIndex, i)) return '';
    const role = field.name === 'role';
    return ` ${field.name}=0x${role ? ((recording.lo(index, i) & roleKnown) >>> 0).toString(16) : recording.value(index, i).toString(16)}`;
  });
  return `${shape.tracepoint.name} cpu ${recording.cpu(index)} pid ${recording.pid(index)} ${recording.comm(recording.pid(index))}${fields.join('')}`;
}

/** What two forms of one recording tell differently, at most ten sentences; and how many values were compared. */
export function differences(
  left: Recording,
  right: Recording,
  tolerance: number,
): { found: string[]; compared: number } {
  const found: string[] = [];
  let compared = 0;
  if (left.length !== right.length) found.push(`${left.length} events, ${right.length} events`);
  for (let i = 0; i < Math.min(left.length, right.length) && found.length < 10; i++) {
    if (left.kind(i) !== right.kind(i)) {
      found.push(`event ${i} is ${left.shape(i).tracepoint.name}, ${right.shape(i).tracepoint.name}`);
      break;
    }
    const here = common(left, i, right, i);
    const there = common(right, i, left, i);
    compared += here.split('=').length - 1;
    if (here !== there) found.push(`event ${i}: ${here}\n  but ${there}`);
    const since = Number(right.base - left.base) + right.time(i) - left.time(i);
    if (Math.abs(since) > tolerance) found.push(`event ${i} is at ${left.time(i)}, ${since} later`);
  }
  return { found, compared };
}
