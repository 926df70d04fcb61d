import type { Scope, Value } from '../../engine/expression.ts';
import { hex } from '../../engine/memory/words.ts';
import type { RspClient } from '../rsp/client.ts';
import type { Violation, Violations } from '../rsp/violations.ts';
import type { Watcher } from '../targets/target.ts';

/** Lines printed at one stop, so that the console stays readable; the command `violations` lists all. */
const MOST_LINES = 100;
const NUMBERS = ['gva', 'gpa', 'gfn', 'pfn', 'level', 'error', 'rip', 'old', 'new'] as const;
/** Names that a condition can ask for, told by this event or not. */
const NAMES = ['vcpu', 'event', 'gva', 'gpa', 'gfn', 'pfn', 'level', 'error_code', 'rip'];
/** Tracepoints that the helper reads, so that `event == kvm_page_fault` can be written. */
const EVENTS = ['kvm_page_fault', 'fast_page_fault', 'kvm_mmu_spte_requested'];

/** A condition asks for what this event does not tell: whether it holds is not known. */
class Untold extends Error {}

/** Second-stage faults that nothing stops at, as the kernel's tracepoints tell of them afterwards. */
export class ViolationsAfter {
  readonly #client: RspClient;
  readonly #print: (text: string) => void;
  /** What the helper was asked for last. */
  #asked = false;
  /** It records. */
  #on = false;
  #taken: Violations | undefined;

  constructor(client: RspClient, print: (text: string) => void) {
    this.#client = client;
    this.#print = print;
  }

  /** Lets the helper record or not. Where the host cannot, that is said once. */
  async want(wanted: boolean): Promise<void> {
    if (wanted === this.#asked) return;
    this.#asked = wanted;
    if (!wanted && !this.#on) return;
    this.#on = false;
    const what = wanted ? 'violations cannot be told after the fact' : 'the recording of violations does not end';
    try {
      // Asked anew: what was lacking at the start may be there by now.
      const lacks = wanted ? (await this.#client.info()).has.violations : undefined;
      if (lacks) this.#print(`${what}: ${lacks}\n`);
      else {
        await this.#client.traceViolations(wanted);
        this.#on = wanted;
      }
    } catch (error) {
      this.#print(`${what}: ${(error as Error).message}\n`);
    }
  }

  /** Takes what was recorded up to this stop, and prints what the filter's condition admits. */
  async tell(watcher: Watcher): Promise<void> {
    this.#taken = undefined;
    if (!this.#on) return;
    try {
      this.#taken = await this.#client.takeViolations();
    } catch (error) {
      this.#print(`violations cannot be taken: ${(error as Error).message}\n`);
      return;
    }
    const { list, lost } = this.#taken;
    let untold = 0;
    const admitted = list.filter((violation) => {
      try {
        return watcher.admits('violations', violationScope(violation));
      } catch (error) {
        if (!(error instanceof Untold)) throw error;
        untold++;
        return false;
      }
    });
    const say = (text: string): void => this.#print(`after the fact: ${text}\n`);
    for (const violation of admitted.slice(0, MOST_LINES)) say(violationWords(violation));
    if (admitted.length > MOST_LINES)
      say(`${admitted.length - MOST_LINES} more; the command violations lists all of this stop`);
    if (untold > 0) say(`${untold} of which the event does not tell what the condition asks for`);
    if (lost > 0) say(`${lost} more were lost`);
  }

  /** Those of the last stop, whatever the condition. */
  listing(): string {
    if (!this.#taken)
      return this.#on
        ? 'nothing has run since violations are traced'
        : 'violations are not traced: turn on the filter “Violations after the fact”, then go on';
    const { list, lost } = this.#taken;
    const lines = list.map(violationWords);
    if (lines.length === 0) lines.push('no violation up to this stop');
    return [...lines, ...(lost > 0 ? [`${lost} more were lost`] : [])].join('\n');
  }
}

/** `vCPU 0: gfn 0x10c, pfn 0x1c0fa3, level 1, event kvm_mmu_spte_requested`: what the event tells, and no more. */
export function violationWords(violation: Violation): string {
  const parts = NUMBERS.flatMap((name) => {
    const value = violation[name];
    if (value === undefined) return [];
    const label = name === 'old' || name === 'new' ? `${name} SPTE` : name === 'error' ? 'error code' : name;
    return [`${label} ${typeof value === 'number' ? value : hex(value)}`];
  });
  return `vCPU ${violation.vcpu}: ${[...parts, `event ${violation.event}`].join(', ')}`;
}

/** Names of a condition. A page's number and its address are told by either. */
export function violationScope(violation: Violation): Scope {
  const { vcpu, event, gva, level, error, rip, pfn } = violation;
  const gpa = violation.gpa ?? (violation.gfn === undefined ? undefined : violation.gfn * 4096n);
  const gfn = violation.gfn ?? (violation.gpa === undefined ? undefined : violation.gpa / 4096n);
  const told: Readonly<Record<string, Value | undefined>> = {
    vcpu: BigInt(vcpu),
    event,
    gva,
    gpa,
    gfn,
    pfn,
    level: level === undefined ? undefined : BigInt(level),
    error_code: error,
    rip,
  };
  return {
    name(path) {
      const [name] = path;
      if (path.length !== 1 || typeof name !== 'string') return undefined;
      if (EVENTS.includes(name)) return name;
      if (!NAMES.includes(name)) return undefined;
      const value = told[name];
      if (value === undefined) throw new Untold(`${event} does not tell ${name}`);
      return value;
    },
    known: `${NAMES.join(', ')}, and names of events (${EVENTS.join(', ')})`,
  };
}
