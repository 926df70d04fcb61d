/**
 * Zstandard frames (RFC 8878), for trace-cmd compresses with it and Node has it only since 22.15. Without dictionaries and without
 * checking checksums. Whoever calls says how long the result is.
 */
import { TraceError } from './errors.ts';

const MAGIC = 0xfd2fb528;
const BLOCK_MOST = 1 << 17;

const fail = (what: string): never => {
  throw new TraceError(`zstd: ${what}`);
};

/** A distribution of symbols, as a table of states (RFC 8878, 4.1). */
interface Fse {
  readonly log: number;
  readonly symbol: Uint8Array;
  readonly bits: Uint8Array;
  readonly next: Uint16Array;
}

function buildFse(counts: readonly number[], log: number): Fse {
  const size = 1 << log;
  const symbol = new Uint8Array(size);
  const bits = new Uint8Array(size);
  const next = new Uint16Array(size);
  let high = size - 1;
  counts.forEach((count, s) => {
    if (count === -1) symbol[high--] = s;
  });
  const step = (size >> 1) + (size >> 3) + 3;
  let at = 0;
  counts.forEach((count, s) => {
    for (let i = 0; i < count; i++) {
      symbol[at] = s;
      do at = (at + step) & (size - 1);
      while (at > high);
    }
  });
  const given = counts.map((count) => (count === -1 ? 1 : count));
  for (let state = 0; state < size; state++) {
    const x = given[symbol[state]!]!++;
    const width = log - (31 - Math.clz32(x));
    bits[state] = width;
    next[state] = (x << width) - size;
  }
  return { log, symbol, bits, next };
}

/** A table of one symbol, which takes no bits. */
function constantFse(symbol: number): Fse {
  return { log: 0, symbol: Uint8Array.of(symbol), bits: new Uint8Array(1), next: new Uint16Array(1) };
}

/** A description of a distribution, read from its lowest bit on (4.1.1); `end` is behind it. */
function readFse(
  bytes: Uint8Array,
  from: number,
  end: number,
  mostLog: number,
  symbols: number,
): { fse: Fse; end: number } {
  let position = 8 * from;
  const peek = (width: number): number => {
    let value = 0;
    for (let i = 0; i < width; i++) {
      const bit = position + i;
      if (bit >> 3 < end) value |= ((bytes[bit >> 3]! >> (bit & 7)) & 1) << i;
    }
    return value;
  };
  const log = peek(4) + 5;
  position += 4;
  if (log > mostLog) fail(`a table of 2^${log} states, where at most 2^${mostLog} are allowed`);
  const counts: number[] = [];
  let remaining = (1 << log) + 1;
  let threshold = 1 << log;
  let width = log + 1;
  while (remaining > 1) {
    if (counts.length >= symbols || position > 8 * end) fail('a table whose counts do not add up');
    const most = 2 * threshold - 1 - remaining;
    const value = peek(width);
    let count = value & (threshold - 1);
    if (count < most) position += width - 1;
    else {
      count = value & (2 * threshold - 1);
      if (count >= threshold) count -= most;
      position += width;
    }
    count--;
    remaining -= Math.abs(count);
    counts.push(count);
    if (count === 0) {
      for (let zeros = 3; zeros === 3; ) {
        zeros = peek(2);
        position += 2;
        for (let i = 0; i < zeros; i++) counts.push(0);
        if (counts.length > symbols) fail('a table with too many symbols');
      }
    }
    while (remaining < threshold && threshold > 1) {
      width--;
      threshold >>= 1;
    }
  }
  const behind = (position + 7) >> 3;
  if (remaining !== 1 || behind > end) fail('a table whose counts do not add up');
  return { fse: buildFse(counts, log), end: behind };
}

/** Bits from the last byte's highest 1 down to the first byte's lowest; 0 behind the last. */
class Backwards {
  readonly #bytes: Uint8Array;
  readonly #from: number;
  /** Bits left; negative when more were read than there are. */
  left: number;

  constructor(bytes: Uint8Array, from: number, end: number) {
    this.#bytes = bytes;
    this.#from = from;
    const last = end > from ? bytes[end - 1]! : 0;
    if (last === 0) fail('a stream of bits without its end');
    this.left = 8 * (end - from - 1) + (31 - Math.clz32(last));
  }

  /** The next bits, at most 24. */
  peek(width: number): number {
    const low = this.left - width;
    // What lies before the first byte counts as 0.
    if (low < 0) return this.left <= 0 ? 0 : (this.#at(0) << -low) & ((1 << width) - 1);
    return (this.#at(low) >>> 0) & ((1 << width) - 1);
  }

  read(width: number): number {
    if (width > 16) {
      const high = this.read(width - 16);
      return high * 65536 + this.read(16);
    }
    const value = this.peek(width);
    this.left -= width;
    return value;
  }

  /** 25 bits at least, from a bit's number on. */
  #at(bit: number): number {
    const at = this.#from + (bit >> 3);
    const bytes = this.#bytes;
    const word = bytes[at]! | ((bytes[at + 1] ?? 0) << 8) | ((bytes[at + 2] ?? 0) << 16) | ((bytes[at + 3] ?? 0) << 24);
    return word >>> (bit & 7);
  }
}

/** Codes by their first bits. */
interface Huffman {
  readonly log: number;
  readonly symbol: Uint8Array;
  readonly bits: Uint8Array;
}

const HUFFMAN_LOG_MOST = 11;

/** A tree's description (4.2.1); `end` is behind it. */
function readHuffman(bytes: Uint8Array, from: number, end: number): { tree: Huffman; end: number } {
  const head = from < end ? bytes[from]! : fail('no Huffman tree');
  const weights: number[] = [];
  let behind: number;
  if (head >= 128) {
    const count = head - 127;
    behind = from + 1 + ((count + 1) >> 1);
    if (behind > end) fail('a Huffman tree that is cut');
    for (let i = 0; i < count; i++) {
      const byte = bytes[from + 1 + (i >> 1)]!;
      weights.push(i & 1 ? byte & 15 : byte >> 4);
    }
  } else {
    behind = from + 1 + head;
    if (behind > end) fail('a Huffman tree that is cut');
    const { fse, end: start } = readFse(bytes, from + 1, behind, 6, 13);
    const stream = new Backwards(bytes, start, behind);
    const states = [stream.read(fse.log), stream.read(fse.log)];
    for (let turn = 0; ; turn ^= 1) {
      const state = states[turn]!;
      weights.push(fse.symbol[state]!);
      if (weights.length > 255) fail('a Huffman tree of more than 256 symbols');
      if (stream.left < fse.bits[state]!) {
        weights.push(fse.symbol[states[turn ^ 1]!]!);
        break;
      }
      states[turn] = fse.next[state]! + stream.read(fse.bits[state]!);
    }
  }
  const sum = weights.reduce((total, weight) => total + (weight > 0 ? 1 << (weight - 1) : 0), 0);
  const log = sum > 0 ? 32 - Math.clz32(sum) : 0;
  const rest = (1 << log) - sum;
  if (log === 0 || log > HUFFMAN_LOG_MOST || (rest & (rest - 1)) !== 0 || weights.length > 255)
    fail('a Huffman tree whose weights do not add up');
  weights.push(32 - Math.clz32(rest));
  const symbol = new Uint8Array(1 << log);
  const bits = new Uint8Array(1 << log);
  let at = 0;
  for (let weight = 1; weight <= log; weight++) {
    weights.forEach((each, s) => {
      if (each !== weight) return;
      const span = 1 << (weight - 1);
      symbol.fill(s, at, at + span);
      bits.fill(log + 1 - weight, at, at + span);
      at += span;
    });
  }
  return { tree: { log, symbol, bits }, end: behind };
}

function readHuffmanStream(tree: Huffman, bytes: Uint8Array, from: number, end: number, into: Uint8Array): void {
  const stream = new Backwards(bytes, from, end);
  for (let i = 0; i < into.length; i++) {
    const code = stream.peek(tree.log);
    into[i] = tree.symbol[code]!;
    stream.left -= tree.bits[code]!;
  }
  if (stream.left !== 0) fail('literals that are longer or shorter than they should be');
}

/** What a code adds to its extra bits, from `first` on; codes before that mean themselves (3.1.1.3.2.1.1). */
function codes(plain: number, start: number, bits: readonly number[]): { base: number[]; bits: number[] } {
  const base = Array.from({ length: plain }, (_, i) => start + i);
  let next = start + plain;
  for (const width of bits) {
    base.push(next);
    next += 2 ** width;
  }
  return { base, bits: [...new Array<number>(plain).fill(0), ...bits] };
}

const LITERALS = codes(16, 0, [1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
const MATCHES = codes(32, 3, [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
const repeated = (text: string): number[] =>
  text.split(' ').flatMap((part) => {
    const [count, times = '1'] = part.split('x');
    return new Array<number>(Number(times)).fill(Number(count));
  });
/** The distributions that need no description (3.1.1.3.2.2), in the order of the modes' bits. */
const KINDS = [
  { usual: buildFse(repeated('4 3 2x11 1x3 2x9 3 2 1x5 -1x4'), 6), log: 9, symbols: 36 },
  { usual: buildFse(repeated('1x6 2x3 1x15 -1x5'), 5), log: 8, symbols: 32 },
  { usual: buildFse(repeated('1 4 3 2x6 1x37 -1x7'), 6), log: 9, symbols: 53 },
] as const;

/** What blocks of a frame take over from those before. */
class Frame {
  readonly out: Uint8Array;
  length = 0;
  #tree: Huffman | undefined;
  readonly #tables: (Fse | undefined)[] = [undefined, undefined, undefined];
  readonly #recent = [1, 4, 8];

  constructor(size: number) {
    this.out = new Uint8Array(size);
  }

  put(bytes: Uint8Array): void {
    if (this.length + bytes.length > this.out.length)
      fail(`more than the ${this.out.length} bytes that it should have`);
    this.out.set(bytes, this.length);
    this.length += bytes.length;
  }

  block(bytes: Uint8Array, from: number, end: number): void {
    const { literals, end: behind } = this.#literals(bytes, from, end);
    this.#sequences(bytes, behind, end, literals);
  }

  #literals(bytes: Uint8Array, from: number, end: number): { literals: Uint8Array; end: number } {
    const byte = (i: number): number => (from + i < end ? bytes[from + i]! : fail('a block that is cut'));
    const type = byte(0) & 3;
    const format = (byte(0) >> 2) & 3;
    if (type < 2) {
      const head = format === 1 ? 2 : format === 3 ? 3 : 1;
      const size = head === 1 ? byte(0) >> 3 : (byte(0) >> 4) | (byte(1) << 4) | (head === 3 ? byte(2) << 12 : 0);
      if (size > BLOCK_MOST) fail(`a block with ${size} literals`);
      const at = from + head;
      if (type === 1) return { literals: new Uint8Array(size).fill(byte(head)), end: at + 1 };
      if (at + size > end) fail('literals that are cut');
      return { literals: bytes.subarray(at, at + size), end: at + size };
    }
    const width = format < 2 ? 10 : format === 2 ? 14 : 18;
    const head = format < 2 ? 3 : format === 2 ? 4 : 5;
    let sizes = 0;
    for (let i = head - 1; i >= 0; i--) sizes = sizes * 256 + byte(i);
    sizes = Math.floor(sizes / 16);
    const size = sizes % 2 ** width;
    const packed = Math.floor(sizes / 2 ** width);
    let at = from + head;
    const behind = at + packed;
    if (behind > end || size > BLOCK_MOST) fail('literals that are cut');
    if (type === 2) {
      const read = readHuffman(bytes, at, behind);
      this.#tree = read.tree;
      at = read.end;
    }
    const tree = this.#tree ?? fail('literals without a Huffman tree');
    const literals = new Uint8Array(size);
    if (format === 0) readHuffmanStream(tree, bytes, at, behind, literals);
    else {
      const quarter = (size + 3) >> 2;
      if (at + 6 > behind || 3 * quarter > size) fail('literals that are cut');
      let start = at + 6;
      for (let i = 0; i < 4; i++) {
        const length = i < 3 ? bytes[at + 2 * i]! | (bytes[at + 2 * i + 1]! << 8) : behind - start;
        if (length < 1 || start + length > behind) fail('literals that are cut');
        readHuffmanStream(
          tree,
          bytes,
          start,
          start + length,
          literals.subarray(i * quarter, i < 3 ? (i + 1) * quarter : size),
        );
        start += length;
      }
    }
    return { literals, end: behind };
  }

  #sequences(bytes: Uint8Array, from: number, end: number, literals: Uint8Array): void {
    let at = from;
    const byte = (): number => (at < end ? bytes[at++]! : fail('a block that is cut'));
    let count = byte();
    if (count === 255) count = byte() + (byte() << 8) + 0x7f00;
    else if (count >= 128) count = ((count - 128) << 8) + byte();
    if (count === 0) {
      this.put(literals);
      return;
    }
    const modes = byte();
    const [lengths, offsets, matches] = KINDS.map((kind, i): Fse => {
      const mode = (modes >> (6 - 2 * i)) & 3;
      let table = this.#tables[i];
      if (mode === 0) table = kind.usual;
      else if (mode === 1) table = constantFse(byte());
      else if (mode === 2) {
        const read = readFse(bytes, at, end, kind.log, kind.symbols);
        table = read.fse;
        at = read.end;
      }
      this.#tables[i] = table;
      return table ?? fail('a block that repeats a table of none');
    }) as [Fse, Fse, Fse];
    const stream = new Backwards(bytes, at, end);
    let length = stream.read(lengths.log);
    let offset = stream.read(offsets.log);
    let match = stream.read(matches.log);
    let used = 0;
    for (let left = count; left > 0; left--) {
      const offsetCode = offsets.symbol[offset]!;
      const matchCode = matches.symbol[match]!;
      const lengthCode = lengths.symbol[length]!;
      if (offsetCode > 31 || matchCode > 52 || lengthCode > 35) fail('a code that means nothing');
      const value = 2 ** offsetCode + stream.read(offsetCode);
      const copy = MATCHES.base[matchCode]! + stream.read(MATCHES.bits[matchCode]!);
      const plain = LITERALS.base[lengthCode]! + stream.read(LITERALS.bits[lengthCode]!);
      if (left > 1) {
        length = lengths.next[length]! + stream.read(lengths.bits[length]!);
        match = matches.next[match]! + stream.read(matches.bits[match]!);
        offset = offsets.next[offset]! + stream.read(offsets.bits[offset]!);
      }
      if (stream.left < 0 || used + plain > literals.length) fail('sequences that are cut');
      this.put(literals.subarray(used, used + plain));
      used += plain;
      this.#copy(this.#distance(value, plain), copy);
    }
    if (stream.left !== 0) fail('sequences with bits left');
    this.put(literals.subarray(used));
  }

  /** The last three distances have short names (3.1.1.5). */
  #distance(value: number, plain: number): number {
    const recent = this.#recent;
    if (value > 3) {
      recent.unshift(value - 3);
      recent.pop();
      return value - 3;
    }
    const which = value - 1 + (plain === 0 ? 1 : 0);
    if (which === 0) return recent[0]!;
    const distance = which === 3 ? recent[0]! - 1 : recent[which]!;
    recent.splice(which === 1 ? 1 : 2, 1);
    recent.unshift(distance);
    return distance;
  }

  #copy(distance: number, count: number): void {
    const { out } = this;
    if (distance < 1 || distance > this.length) fail(`a copy from ${distance} bytes back, of ${this.length}`);
    if (this.length + count > out.length) fail(`more than the ${out.length} bytes that it should have`);
    let to = this.length;
    // Source and target may overlap, which repeats what lies between.
    for (const end = to + count; to < end; to++) out[to] = out[to - distance]!;
    this.length = to;
  }
}

/**
 * Undoes zstd.
 * @param size of the result, in bytes
 * @throws TraceError when the bytes are no frame, or are damaged
 */
export function unzstd(bytes: Uint8Array, size: number): Uint8Array {
  let at = 0;
  const number = (width: number): number => {
    let value = 0;
    if (at + width > bytes.length) fail('a frame that is cut');
    for (let i = width - 1; i >= 0; i--) value = value * 256 + bytes[at + i]!;
    at += width;
    return value;
  };
  if (number(4) !== MAGIC) fail('no frame: it does not begin with 28 b5 2f fd');
  const descriptor = number(1);
  const single = (descriptor >> 5) & 1;
  if (!single) number(1);
  if (number([0, 1, 2, 4][descriptor & 3]!) !== 0) fail('a frame that needs a dictionary');
  number([single, 2, 4, 8][descriptor >> 6]!);
  const frame = new Frame(size);
  for (let last = 0; !last; ) {
    const header = number(3);
    last = header & 1;
    const type = (header >> 1) & 3;
    const length = header >> 3;
    if (type === 3 || length > BLOCK_MOST) fail(`a block of kind ${type} and ${length} bytes`);
    if (type === 1) frame.put(new Uint8Array(length).fill(number(1)));
    else {
      if (at + length > bytes.length) fail('a block that is cut');
      if (type === 0) frame.put(bytes.subarray(at, at + length));
      else frame.block(bytes, at, at + length);
      at += length;
    }
  }
  return frame.out.subarray(0, frame.length);
}
