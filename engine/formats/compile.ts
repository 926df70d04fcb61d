import {
  type EntryKind,
  type Feature,
  type Field,
  type FormatSpec,
  fieldApplies,
  fieldMask,
  type Level,
} from './format.ts';

/** What a walk finds in an entry. */
export const ABSENT = 0;
export const TABLE = 1;
export const LEAF = 2;
/** Flag of `judge`: the walk refuses the entry. */
export const MALFORMED = 32;

/** Effective rights, in KVM's ACC_* encoding. */
export const ACC_EXEC = 1;
export const ACC_WRITE = 2;
export const ACC_USER = 4;

export interface FormatOptions {
  /** Physical-address width in bits, 32 … 52: address bits from here up are reserved. */
  readonly maxPhyAddr: number;
  readonly features: ReadonlySet<Feature>;
}

interface Words {
  readonly lo: number;
  readonly hi: number;
}

function words(mask: bigint): Words {
  return { lo: Number(mask & 0xffffffffn) | 0, hi: Number(mask >> 32n) | 0 };
}

const KINDS: readonly EntryKind[] = ['table', 'leaf'];
const ALL_64 = (1n << 64n) - 1n;

/**
 * A format for one machine: every mask a walk needs, as words, per level. Index the per-kind arrays with
 * `2 * level + (leaf ? 1 : 0)`.
 */
export class Format {
  readonly spec: FormatSpec;
  readonly options: FormatOptions;
  readonly rootLevel: number;
  /** Input frames an entry of a level covers: 512^(level−1). */
  readonly span: Float64Array;
  /** Input frames that the tables translate. */
  readonly inputFrames: number;
  /** 1 / span: exact, since spans are powers of two. */
  readonly inverseSpan: Float64Array;
  /** Bits of which any makes an entry present; all stand in the low word. */
  readonly presentLo: number;
  /** Bit that makes an entry of a level a leaf; 0 where none does. Level 1 is always a leaf. */
  readonly largeLo: Int32Array;
  readonly reservedLo: Int32Array;
  readonly reservedHi: Int32Array;
  readonly addressLo: Int32Array;
  readonly addressHi: Int32Array;
  /**
   * What bits 11:0 say by themselves, per level: all that a walk asks of most entries in one look-up. Index with
   * `level << 12 | low bits`; the value is as `judge` returns it.
   */
  readonly #low: Uint8Array;
  readonly accessedLo: number;
  readonly dirtyLo: number;
  readonly writeLo: number;
  readonly userLo: number;
  readonly globalLo: number;
  readonly executeLo: number;
  readonly noExecuteHi: number;
  readonly #keyMaskHi: number;
  readonly #keyShiftHi: number;
  #levels: (Level | undefined)[] = [];

  constructor(spec: FormatSpec, options: FormatOptions) {
    const { maxPhyAddr } = options;
    if (!Number.isInteger(maxPhyAddr) || maxPhyAddr < 32 || maxPhyAddr > 52)
      throw new RangeError(`MAXPHYADDR ${maxPhyAddr} is out of range: 32 … 52`);
    this.spec = spec;
    this.options = options;
    for (const level of spec.levels) this.#levels[level.level] = level;
    this.rootLevel = Math.max(...spec.levels.map((level) => level.level));
    const size = this.rootLevel + 1;
    this.span = Float64Array.from({ length: size }, (_, level) => (level === 0 ? 1 : 512 ** (level - 1)));
    this.inputFrames = 512 * this.span[this.rootLevel]!;
    this.inverseSpan = this.span.map((span) => 1 / span);
    this.largeLo = new Int32Array(size);
    this.reservedLo = new Int32Array(2 * size);
    this.reservedHi = new Int32Array(2 * size);
    this.addressLo = new Int32Array(2 * size);
    this.addressHi = new Int32Array(2 * size);
    const roles = spec.roles;
    this.presentLo = roles.present.reduce((mask, name) => mask | this.#bit(name).lo, 0);
    for (const { level } of spec.levels) {
      for (const kind of KINDS) {
        const slot = 2 * level + (kind === 'leaf' ? 1 : 0);
        const reserved = words(this.reservedMask(level, kind));
        this.reservedLo[slot] = reserved.lo;
        this.reservedHi[slot] = reserved.hi;
        const address = words(this.addressMask(level, kind));
        this.addressLo[slot] = address.lo;
        this.addressHi[slot] = address.hi;
      }
      if (level > 1 && this.isLargeLevel(level)) this.largeLo[level] = this.#bit(roles.largePage).lo;
    }
    this.accessedLo = this.#bit(roles.accessed).lo;
    this.dirtyLo = this.#bit(roles.dirty).lo;
    this.writeLo = this.#bit(roles.write).lo;
    this.userLo = this.#bit(roles.user).lo;
    this.globalLo = this.#bit(roles.global).lo;
    this.executeLo = this.#bit(roles.execute).lo;
    this.noExecuteHi = this.#bit(roles.noExecute).hi;
    this.#keyMaskHi = this.#bit(roles.protectionKey).hi;
    this.#keyShiftHi = this.#keyMaskHi === 0 ? 0 : 31 - Math.clz32(this.#keyMaskHi & -this.#keyMaskHi);
    this.#low = this.#compileLow();
  }

  /** Mask of a field by name; zero for a role that the format lacks. */
  #bit(name: string | undefined): Words {
    const field = this.spec.fields.find((candidate) => candidate.name === name);
    return field ? words(fieldMask(field)) : { lo: 0, hi: 0 };
  }

  level(level: number): Level {
    const found = this.#levels[level];
    if (!found) throw new RangeError(`${this.spec.title} has no level ${level}`);
    return found;
  }

  /** Whether entries of this level may map a page on this machine (always at level 1). */
  isLargeLevel(level: number): boolean {
    if (level === 1) return true;
    const large = this.spec.largeLevels.find((candidate) => candidate.level === level);
    return large !== undefined && (large.requires === undefined || this.options.features.has(large.requires));
  }

  /** Fields of such an entry whose bits this machine does not reserve, highest bit first. */
  fields(level: number, kind: EntryKind): Field[] {
    const { features } = this.options;
    return this.spec.fields
      .filter((field) => fieldApplies(field, level, kind))
      .filter((field) => field.requires === undefined || features.has(field.requires))
      .filter((field) => field.unless === undefined || !features.has(field.unless))
      .sort((a, b) => b.bits[0] - a.bits[0]);
  }

  addressMask(level: number, kind: EntryKind): bigint {
    const field = this.fields(level, kind).find((candidate) => candidate.name === this.spec.roles.address);
    const width = (1n << BigInt(this.options.maxPhyAddr)) - 1n;
    return field ? fieldMask(field) & width : 0n;
  }

  /** Bits that must be zero in a present entry: those of no field, and address bits from MAXPHYADDR up. */
  reservedMask(level: number, kind: EntryKind): bigint {
    const address = this.spec.roles.address;
    const used = this.fields(level, kind).reduce(
      (mask, field) => mask | (field.name === address ? this.addressMask(level, kind) : fieldMask(field)),
      0n,
    );
    return ALL_64 & ~used;
  }

  /** ABSENT, TABLE or LEAF, without judging reserved bits. */
  classify(level: number, lo: number): number {
    return this.#low[(level << 12) | (lo & 0xfff)]! & 3;
  }

  /**
   * All that a walk asks of an entry at once: ABSENT, TABLE or LEAF in bits 1:0, its own rights (ACC_* << 2) in bits 4:2,
   * and MALFORMED when it sets a reserved bit or an illegal combination.
   */
  judge(level: number, lo: number, hi: number): number {
    let judged = this.#low[(level << 12) | (lo & 0xfff)]!;
    if (judged === ABSENT) return ABSENT;
    const slot = 2 * level + ((judged >>> 1) & 1);
    if (((lo & this.reservedLo[slot]!) | (hi & this.reservedHi[slot]!)) !== 0) judged |= MALFORMED;
    if ((hi & this.noExecuteHi) !== 0) judged &= ~(ACC_EXEC << 2);
    return judged;
  }

  /** Whether an entry is present and sets a reserved bit or an illegal combination. */
  isMalformed(level: number, lo: number, hi: number): boolean {
    return (this.judge(level, lo, hi) & MALFORMED) !== 0;
  }

  #compileLow(): Uint8Array {
    const low = new Uint8Array((this.rootLevel + 1) << 12);
    for (const { level } of this.spec.levels) {
      for (let bits = 0; bits < 4096; bits++) {
        if ((bits & this.presentLo) === 0) continue;
        const leaf = level === 1 || (bits & this.largeLo[level]!) !== 0;
        low[(level << 12) | bits] =
          (leaf ? LEAF : TABLE) |
          (this.access(bits, 0) << 2) |
          (this.#illegal(level, leaf, bits) === undefined ? 0 : MALFORMED);
      }
    }
    return low;
  }

  /** Says which combination of legal bits the walk refuses, if any. Such rules concern bits 11:0 only. */
  illegalWords(level: number, lo: number): string | undefined {
    return this.#illegal(level, this.classify(level, lo) === LEAF, lo);
  }

  #illegal(level: number, leaf: boolean, lo: number): string | undefined {
    for (const rule of this.spec.illegal) {
      if ((lo & rule.mask) === rule.value && !(rule.unless && this.options.features.has(rule.unless)))
        return rule.words;
    }
    for (const field of this.spec.fields) {
      if (!field.legal || !fieldApplies(field, level, leaf ? 'leaf' : 'table')) continue;
      const [high, low] = field.bits;
      const value = (lo >>> low) & ((1 << (high - low + 1)) - 1);
      if (!field.legal.includes(value)) return `${field.name} ${value} is not defined`;
    }
    return undefined;
  }

  /** The frame an entry points to: the next table's or the page's. */
  frame(level: number, lo: number, hi: number): number {
    const slot = 2 * level + (level === 1 || (lo & this.largeLo[level]!) !== 0 ? 1 : 0);
    const low = (lo & this.addressLo[slot]!) >>> 12;
    const high = hi & this.addressHi[slot]!;
    // Most frames fit 20 bits of the low word: kept an integer, they cost no floating point.
    return high === 0 ? low : low + high * 1048576;
  }

  /** Rights of one entry in ACC_* bits. Where the format has no user bit, ACC_USER means readable, as for KVM's EPT. */
  access(lo: number, hi: number): number {
    let access = 0;
    if ((lo & this.writeLo) !== 0) access |= ACC_WRITE;
    if (this.userLo !== 0 ? (lo & this.userLo) !== 0 : (lo & 1) !== 0) access |= ACC_USER;
    if (this.executeLo !== 0 ? (lo & this.executeLo) !== 0 : (hi & this.noExecuteHi) === 0) access |= ACC_EXEC;
    return access;
  }

  /** The protection key of a leaf; 0 in a format without keys. */
  keyOf(hi: number): number {
    return (hi & this.#keyMaskHi) >>> this.#keyShiftHi;
  }

  indexOf(frame: number, level: number): number {
    return (frame * this.inverseSpan[level]!) & 511;
  }
}
