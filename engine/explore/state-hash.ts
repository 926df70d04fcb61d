import type { CounterName } from '../counters.ts';
import { Kind, type Log } from '../history/log.ts';
import type { Machine } from '../machine.ts';
import type { Task } from '../operation.ts';
import { emptyEntry } from '../tdp/spte.ts';
import { NEVER_CHANGED } from './snapshot.ts';

/** 64 bits, as two words. Of a million states two have the same once in ten million explorations. */
export interface Hash {
  a: number;
  b: number;
}

const SEED_A = 0x9e3779b1;
const SEED_B = 0x85ebca6b;

const whole = new WeakMap<object, Mixer>();
const texts = new Map<string, Hash>();

function hashOfText(text: string): Hash {
  let known = texts.get(text);
  if (!known) {
    const mixer = new Mixer();
    mixer.word(text.length + 11);
    for (let at = 0; at < text.length; at++) mixer.word(text.charCodeAt(at));
    known = { a: mixer.a, b: mixer.b };
    texts.set(text, known);
  }
  return known;
}

/** Takes words in, one after the other, and keeps two independent sums of them. */
class Mixer implements Hash {
  a = SEED_A;
  b = SEED_B;

  word(value: number): void {
    this.a = Math.imul(this.a ^ value, 0xcc9e2d51);
    this.a = Math.imul(this.a ^ (this.a >>> 15), 0x2c1b3c6d);
    this.b = Math.imul(this.b ^ value, 0x1b873593);
    this.b = Math.imul(this.b ^ (this.b >>> 13), 0x297a2d39);
  }

  /** An integer of up to 53 bits. */
  number(value: number): void {
    this.word(value | 0);
    this.word(Math.floor(value / 2 ** 32) | 0);
  }

  /** Plain data, by what it holds. */
  value(value: unknown): void {
    switch (typeof value) {
      case 'number':
        this.number(value);
        return;
      case 'boolean':
        this.word(value ? 3 : 5);
        return;
      case 'bigint':
        this.word(7);
        this.number(Number(BigInt.asUintN(48, value)));
        this.word(Number((value >> 48n) & 0xffffn));
        return;
      case 'string': {
        const { a, b } = hashOfText(value);
        this.word(a);
        this.word(b);
        return;
      }
      case 'object':
        this.#object(value);
        return;
      default:
        this.word(13);
    }
  }

  #object(value: object | null): void {
    if (value === null) {
      this.word(17);
      return;
    }
    if (Array.isArray(value)) {
      this.word(19 + value.length);
      for (const each of value) this.value(each);
      return;
    }
    if (ArrayBuffer.isView(value) || value instanceof Set || value instanceof Map) {
      this.value([...(value as unknown as Iterable<unknown>)]);
      return;
    }
    this.word(23);
    for (const key in value) {
      const each = (value as Record<string, unknown>)[key];
      this.value(key);
      if (NEVER_CHANGED.has(key) && typeof each === 'object' && each !== null) this.#whole(each);
      else this.value(each);
    }
  }

  /** What never changes is looked at once. */
  #whole(value: object): void {
    let known = whole.get(value);
    if (!known) {
      known = new Mixer();
      known.value(value);
      known.end();
      whole.set(value, known);
    }
    this.word(known.a);
    this.word(known.b);
  }

  /** The last mixing, after which single bits of what was taken in are everywhere. */
  end(): this {
    this.a ^= this.a >>> 16;
    this.a = Math.imul(this.a, 0x45d9f3b);
    this.a ^= this.a >>> 16;
    this.b ^= this.b >>> 15;
    this.b = Math.imul(this.b, 0x2c1b3c6d);
    this.b ^= this.b >>> 12;
    return this;
  }
}

/**
 * What a machine's state is, beside its tasks, as one number that follows the log: each part of the state has a hash of its own, and they are
 * summed by exclusive or, so that an entry takes the old value's out and puts the new one's in, wherever it came from. What is
 * only counted, traced or told is no part of it; nor is the order in which frames are handed out.
 */
export class StateHash implements Hash {
  a = 0;
  b = 0;
  readonly #maps = new Map<object, number>();
  readonly #known = new WeakMap<object, Hash>();

  /** Takes in what the log has gained since `position`. */
  follow(log: Log, position: number): void {
    for (let at = position; at < log.length; at++) this.#entry(log, at);
  }

  #toggle(kind: number, key: number, lo: number, hi: number): void {
    const mixer = new Mixer();
    mixer.word(kind);
    mixer.number(key);
    mixer.word(lo);
    mixer.word(hi);
    mixer.end();
    this.a ^= mixer.a;
    this.b ^= mixer.b;
  }

  /** @param value immutable, where it is an object */
  #toggleValue(kind: number, key: number, value: unknown): void {
    if (value === undefined) return;
    const { a, b } = this.#hashOf(value);
    const mixer = new Mixer();
    mixer.word(kind);
    mixer.number(key);
    mixer.word(a);
    mixer.word(b);
    mixer.end();
    this.a ^= mixer.a;
    this.b ^= mixer.b;
  }

  #hashOf(value: unknown): Hash {
    const isObject = typeof value === 'object' && value !== null;
    const known = isObject ? this.#known.get(value) : undefined;
    if (known) return known;
    const mixer = new Mixer();
    mixer.value(value);
    mixer.end();
    if (isObject) this.#known.set(value, mixer);
    return mixer;
  }

  #entry(log: Log, position: number): void {
    const entry = log.at(position);
    const { kind, address, object } = entry;
    switch (kind) {
      case Kind.MEMORY:
      case Kind.ENTRY_BITS:
      case Kind.SPTE:
      case Kind.SPTE_UNTRACED:
      case Kind.TRANSLATION:
        this.#toggle(Kind.MEMORY, address, entry.oldLo, entry.oldHi);
        this.#toggle(Kind.MEMORY, address, entry.newLo, entry.newHi);
        return;
      case Kind.REGISTER:
      case Kind.REQUESTS:
        this.#toggle(kind, address, entry.oldLo, entry.oldHi);
        this.#toggle(kind, address, entry.newLo, entry.newHi);
        return;
      case Kind.TLB_FILL: {
        const { old, entry: filled } = object as { old: object | undefined; entry: object };
        this.#toggleValue(Kind.TLB_FILL, tlbKey(address, entry.oldLo), old);
        this.#toggleValue(Kind.TLB_FILL, tlbKey(address, entry.oldLo), filled);
        return;
      }
      case Kind.TLB_DROP:
        this.#toggleValue(Kind.TLB_FILL, tlbKey(address, entry.oldLo), (object as { old: object }).old);
        return;
      case Kind.TLB_FLUSH: {
        const { before, after } = object as Record<'before' | 'after', (object | undefined)[]>;
        before.forEach((each, slot) => {
          if (each === undefined || each === after[slot]) return;
          this.#toggleValue(Kind.TLB_FILL, tlbKey(address, slot), each);
        });
        return;
      }
      case Kind.TABLE_ALLOC:
        this.#toggleValue(Kind.TABLE_ALLOC, address, object);
        return;
      case Kind.TABLE_FREE: {
        const { page, content } = object as { page: object; content: Uint32Array };
        this.#toggleValue(Kind.TABLE_ALLOC, address, page);
        this.#drop(address, content, emptyEntry.lo, emptyEntry.hi);
        return;
      }
      case Kind.FRAME_FREE:
        this.#drop(address, object as Uint32Array, 0, 0);
        return;
      case Kind.INDEX: {
        const { map, key, before, after } = object as Record<'before' | 'after', unknown> & {
          map: object;
          key: number;
        };
        this.#toggleValue(1000 + this.#numberOf(map), key, before);
        this.#toggleValue(1000 + this.#numberOf(map), key, after);
        return;
      }
      case Kind.ATTRIBUTES: {
        const { before, isPrivate } = object as {
          before: { start: number; end: number; isPrivate: boolean }[];
          isPrivate: boolean;
        };
        for (const run of before)
          if (run.isPrivate !== isPrivate)
            for (let gfn = run.start; gfn < run.end; gfn++) this.#toggle(Kind.ATTRIBUTES, gfn, 1, 0);
        return;
      }
      case Kind.LOCK:
      case Kind.UNLOCK:
        this.#change(Kind.LOCK, address, object, sortedReaders);
        return;
      case Kind.TABLE_STATE:
        this.#change(Kind.TABLE_ALLOC, address, object);
        return;
      case Kind.MMU:
        this.#change(kind, address * 4 + entry.oldLo, object);
        return;
      case Kind.SLOTS:
      case Kind.INVALIDATE:
      case Kind.CPUID:
      case Kind.SMM:
      case Kind.GUEST_MODE:
        this.#change(kind, address, object);
        return;
      default:
        // Told, counted or traced.
        return;
    }
  }

  #change(kind: number, key: number, object: unknown, as: (value: never) => unknown = (value) => value): void {
    const { before, after } = object as Record<'before' | 'after', never>;
    this.#toggleValue(kind, key, as(before));
    this.#toggleValue(kind, key, as(after));
  }

  /** What a frame held goes, as far as it was anything. */
  #drop(pfn: number, content: Uint32Array, lo: number, hi: number): void {
    for (let index = 0; index < 512; index++) {
      const [wasLo, wasHi] = [content[2 * index]!, content[2 * index + 1]!];
      if (wasLo === lo && wasHi === hi) continue;
      this.#toggle(Kind.MEMORY, pfn * 512 + index, wasLo, wasHi);
      this.#toggle(Kind.MEMORY, pfn * 512 + index, lo, hi);
    }
  }

  #numberOf(map: object): number {
    const known = this.#maps.get(map) ?? this.#maps.size;
    this.#maps.set(map, known);
    return known;
  }
}

const tlbKey = (vcpu: number, slot: number): number => vcpu * 2 ** 20 + slot;

function sortedReaders({ writer, readers }: { writer: number; readers: readonly number[] }): unknown {
  return { writer, readers: [...readers].sort((a, b) => a - b) };
}

/** Where a task stands, and all that it has in hand. */
export function hashTask(task: Task): Hash {
  const mixer = new Mixer();
  mixer.word(task.id);
  mixer.word(task.pc);
  mixer.value(task.state === 'done' || task.state === 'halted' ? task.state : '');
  mixer.value(task.loops);
  mixer.number(task.result);
  mixer.value(task.access);
  mixer.value(task.holds);
  mixer.value(task.cr2);
  mixer.value(task.loaded);
  mixer.value(task.errorCode);
  for (const { fn, step, locals } of task.stack) {
    mixer.value(fn);
    mixer.word(step);
    mixer.value(locals);
  }
  return mixer.end();
}

/** The rest of what decides how a machine goes on. @param counted counters that the program asks for */
export function hashSmall(machine: Machine, counted: readonly CounterName[]): Hash {
  const { small } = machine;
  const { mmioPages, mmuValidGen, injected, lateUnsync, conversions, nextBacking, tablePools } = small;
  const { asyncPf, possibleNxHugePages } = small;
  const mixer = new Mixer();
  mixer.value([mmioPages, mmuValidGen, injected, lateUnsync, nextBacking, tablePools, asyncPf, possibleNxHugePages]);
  for (const { task, start, end, isPrivate } of [...conversions].sort((a, b) => a.task - b.task))
    mixer.value([task, start, end, isPrivate]);
  for (const name of counted) mixer.number(machine.counter(name));
  return mixer.end();
}
