// The engine's side of the benchmarks: the same work as reference.c. Prints `checksum nanoseconds-per-unit`.
import { FORMATS } from '../engine/formats/all.ts';
import { Format } from '../engine/formats/compile.ts';
import { EPT } from '../engine/formats/ept.ts';
import { X86_64 } from '../engine/formats/x86-64.ts';
import { LONG_MODE, pagingMode } from '../engine/guest/registers.ts';
import { finishWalk, startWalk, type WalkMemory } from '../engine/guest/walk.ts';
import { PhysicalMemory } from '../engine/memory/physical.ts';
import { map } from '../engine/pgtable/operations.ts';
import type { TableStore } from '../engine/pgtable/tables.ts';
import { DONE, LEAF, READ_ONLY, Walker } from '../engine/pgtable/walker.ts';
import type { Program } from '../engine/program.ts';
import { Leaves } from '../engine/queries/leaves.ts';
import { Run } from '../engine/run.ts';

const options = { maxPhyAddr: 46, features: new Set(['nx', '1g-pages'] as const) };
const RIGHTS = { write: true, execute: true, user: true };

function makeStore(memory: PhysicalMemory, first: number, shift = 0): TableStore & { used: number } {
  return {
    used: first,
    page: (frame) => memory.page(frame - shift),
    store(frame, index, lo, hi) {
      const page = memory.writable(frame - shift);
      page[2 * index] = lo;
      page[2 * index + 1] = hi;
    },
    allocate() {
      return shift + this.used++;
    },
    release() {},
  };
}

function best(rounds: number, work: () => number): { sum: number; nanoseconds: number } {
  let nanoseconds = Number.POSITIVE_INFINITY;
  let sum = 0;
  for (let round = 0; round < rounds; round++) {
    const begin = process.hrtime.bigint();
    sum = work();
    nanoseconds = Math.min(nanoseconds, Number(process.hrtime.bigint() - begin));
  }
  return { sum, nanoseconds };
}

function walk(n: number): { sum: number; nanoseconds: number } {
  const memory = new PhysicalMemory();
  const format = new Format(X86_64, options);
  const store = makeStore(memory, 1);
  const root = store.allocate(1);
  map({ store, format, root }, 0, n, 7, { rights: RIGHTS }, 1);
  // Small trees are walked often enough for the compiler to have done its work.
  const result = best(Math.max(7, Math.ceil(2e7 / n)), () => {
    const walker = new Walker(memory, { format, root }, 0, n, LEAF | READ_ONLY);
    let sum = 0;
    while (walker.next() !== DONE) sum += walker.target;
    return sum;
  });
  return { sum: result.sum, nanoseconds: result.nanoseconds / n };
}

function translate(n: number, m: number): { sum: number; nanoseconds: number } {
  const memory = new PhysicalMemory();
  const cpu = { maxPhyAddr: 46, features: new Set(['1g-pages'] as const) };
  const guestFormat = new Format(X86_64, options);
  const eptFormat = new Format(EPT, options);
  // Guest tables: host frame k is guest frame n + k − 1. The data pages' frames do not matter: only tables are read.
  const guestStore = makeStore(memory, 1, n - 1);
  const cr3 = guestStore.allocate(1);
  map({ store: guestStore, format: guestFormat, root: cr3 }, 0, n, 0, { rights: RIGHTS, fields: { A: 1, D: 1 } }, 1);
  const tables = guestStore.used - 1;
  const store = makeStore(memory, guestStore.used);
  const root = store.allocate(1);
  const ept = { store, format: eptFormat, root };
  const attributes = { rights: RIGHTS, fields: { 'memory type': 6, A: 1, D: 1 } };
  map(ept, 0, n, 0, attributes, 1);
  map(ept, n, tables, 1, attributes, 1);
  const mode = pagingMode({ ...LONG_MODE, cr3: BigInt(cr3) << 12n }, cpu);
  const second = { kind: 'ept', format: eptFormat, root } as const;
  const walkMemory: WalkMemory = {
    page: (pfn) => memory.page(pfn),
    setBits(pfn, index, lo, hi) {
      const page = memory.writable(pfn);
      page[2 * index] = lo;
      page[2 * index + 1] = hi;
    },
    resolve: () => -1,
    mayUpdate: () => true,
  };
  const kind = { bits: 0, implicit: false };
  const result = best(5, () => {
    let state = 2463534242;
    let sum = 0;
    for (let i = 0; i < m; i++) {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      const finished = finishWalk(startWalk(mode, second, (state >>> 0) % n, kind), mode, second, walkMemory);
      if (finished.status !== 'done') throw new Error(`translation ${i} ended as ${finished.status}`);
      sum += finished.pfn;
    }
    return sum;
  });
  return { sum: result.sum, nanoseconds: result.nanoseconds / m };
}

/** Leaves of a format, with the rights that all levels leave, as `kvm-mmu dump` visits them. */
function leaves(name: string, n: number): { sum: number; nanoseconds: number } {
  const spec = FORMATS.get(name)!;
  const memory = new PhysicalMemory();
  const features = new Set(['nx', '1g-pages', 'pse'] as const);
  const format = new Format(spec, { maxPhyAddr: spec.entryBytes === 4 ? 36 : 46, features });
  let used = 16;
  const store: TableStore = {
    page: (frame) => memory.page(frame),
    store(frame, index, lo, hi) {
      const page = memory.writable(frame);
      page[2 * index] = lo;
      page[2 * index + 1] = hi;
    },
    allocate(frames) {
      const first = Math.ceil(used / frames) * frames;
      used = first + frames;
      return first;
    },
    release() {},
  };
  const root = store.allocate(format.tableFrames[format.rootLevel]!);
  const unit = format.span[1]!;
  map({ store, format, root }, 0, n * unit, 0, { rights: RIGHTS }, 1);
  const stage = { register: '', value: 0n, tree: { format, root }, base: 0 };
  const result = best(Math.max(5, Math.ceil(1e7 / n)), () => {
    const list = new Leaves(memory, stage, 0, n * unit, () => {});
    let sum = 0;
    while (list.next()) sum += list.target;
    return sum;
  });
  return { sum: result.sum, nanoseconds: result.nanoseconds / n };
}

/** Faults of a scenario that reads N pages in order, through every step of KVM's handler. */
function populate(n: number): { sum: number; nanoseconds: number } {
  const span = { line: 1, column: 1, endLine: 1, endColumn: 1 };
  const literal = (value: number) => ({ kind: 'number', value: BigInt(value) }) as const;
  const size = BigInt(Math.ceil(n / 512) * 512 + 1024) * 4096n;
  const program: Program = {
    machine: {
      slots: [{ id: 0, base: 0n, size, readonly: false, pageLevel: 1 }],
      second: 'ept',
      maxPhyAddr: 46,
      features: ['1g-pages'],
    },
    guests: [
      {
        name: 'k',
        span,
        mappings: [
          {
            gva: 0n,
            size: size - (4n << 20n) + (2n << 20n),
            gpa: 0n,
            pageLevel: 2,
            write: true,
            execute: true,
            user: false,
            fields: {},
            span,
          },
        ],
      },
    ],
    tasks: [
      {
        kind: 'vcpu',
        name: '0',
        guest: 'k',
        span,
        body: [
          {
            kind: 'repeat',
            count: literal(n),
            variable: 'i',
            span,
            body: [
              {
                kind: 'access',
                access: 'read',
                address: { kind: 'binary', operator: '*', left: { kind: 'name', path: ['i'] }, right: literal(4096) },
                size: 8,
                implicit: false,
                span,
              },
            ],
          },
        ],
      },
    ],
    expects: [],
  };
  const run = new Run(program);
  const result = best(1, () => {
    run.runToEnd();
    return run.machine.counter('faults.fixed');
  });
  return { sum: result.sum, nanoseconds: result.nanoseconds / n };
}

const [work, ...numbers] = process.argv.slice(2);
const [n = 0, m = 0] = numbers.map(Number);
const { sum, nanoseconds } =
  work === 'walk'
    ? walk(n)
    : work === 'translate'
      ? translate(n, m)
      : work === 'populate'
        ? populate(n)
        : leaves(work!, n);
console.log(`${sum} ${nanoseconds.toFixed(3)}`);
