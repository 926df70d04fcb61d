import {
  ALL_RIGHTS,
  type EntryKind,
  type Feature,
  type Field,
  type FormatSpec,
  fieldApplies,
  fieldMask,
  type Level,
  SUPER_EXEC,
  SUPER_WRITE,
  USER_READ,
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
  /** Physical-address width in bits, 32 … 52 unless the format says otherwise: address bits from here up are reserved. */
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

/** A field's values that take rights away. */
interface Withholding {
  readonly lo: boolean;
  readonly shift: number;
  readonly mask: number;
  /** Rights taken, by value. */
  readonly takes: Uint8Array;
}

const KINDS: readonly EntryKind[] = ['table', 'leaf'];

/**
 * A format for one machine: every mask a walk needs, as words, per level. Index the per-kind arrays with
 * `2 * level + (leaf ? 1 : 0)`.
 */
export class Format {
  readonly spec: FormatSpec;
  readonly options: FormatOptions;
  readonly rootLevel: number;
  readonly pageSize: number;
  readonly entryBytes: number;
  /** Entries of a table of each level. */
  readonly entries: Int32Array;
  /** 4K frames that a table of each level fills: 1 but for large granules and concatenated tables. */
  readonly tableFrames: Int32Array;
  /** An entry's place in its 4K frame: `(index & perFrameMask) << wordShift` is its word, `index >> perFrameBits` the frame. */
  readonly perFrameBits: number;
  readonly perFrameMask: number;
  readonly wordShift: number;
  /** Input frames (of 4K) an entry of a level covers. */
  readonly span: Float64Array;
  /** Input frames that the tables translate. */
  readonly inputFrames: number;
  /** 1 / span: exact, since spans are powers of two. */
  readonly inverseSpan: Float64Array;
  /** Bits of which any makes an entry present; all stand in the low word. */
  readonly presentLo: number;
  /** Bits that an entry of level 1 must all have to map a page, besides. */
  readonly pageLo: number;
  readonly reservedLo: Int32Array;
  readonly reservedHi: Int32Array;
  readonly addressLo: Int32Array;
  readonly addressHi: Int32Array;
  /** Every address bit of the low word, those that stand apart included. */
  readonly anyAddressLo: Int32Array;
  /** The last frame that a leaf of each level can map. */
  readonly lastFrame: Float64Array;
  /** Whether address bits stand in an entry where they stand in the address. */
  readonly isPlain: boolean;
  readonly #addressShift: number;
  readonly #highScale: number;
  readonly #extraLo: Int32Array;
  readonly #extraShift: number;
  readonly #extraScale: number;
  /**
   * What bits 11:0 say by themselves, per level: all that a walk asks of most entries in one look-up. Index with
   * `level << 12 | low bits`; the value is as `judge` returns it.
   */
  readonly #low: Uint8Array;
  /** Whether entries tell users' rights from the supervisor's. */
  readonly tellsUsers: boolean;
  /** Values of the lowest bits that tell states and rights apart: all above them repeat. */
  readonly #told: number;
  /** Rights that bits 11:0 of an entry take, by slot; index with `slot << 12 | low bits`. */
  readonly #takenLow: Uint8Array;
  /** Fields of the upper word that take rights, by slot. */
  readonly #withholding: (readonly Withholding[])[];
  readonly accessedLo: number;
  /** The same by level: 0 where entries have no accessed bit, as PDPTEs of PAE paging. */
  readonly accessedAt: Int32Array;
  readonly dirtyLo: number;
  readonly writeLo: number;
  readonly userLo: number;
  readonly globalLo: number;
  /** The bit, in the upper word, by which a guest says of a page whether it is private (C) or shared (S); 0 where it cannot. */
  readonly privacyHi: number;
  /** Whether such a bit means private. */
  readonly setIsPrivate: boolean;
  readonly #noExecuteHi: number;
  readonly #keyMaskHi: number;
  readonly #keyShiftHi: number;
  /** Bits of all fields that mark a leaf, and fields of which not every value is legal. */
  readonly #leafMarks: number;
  readonly #restricted: readonly Field[];
  readonly #levels: (Level | undefined)[] = [];

  constructor(spec: FormatSpec, options: FormatOptions) {
    const { maxPhyAddr } = options;
    const [least, most] = spec.physicalBits ?? [32, 52];
    if (!Number.isInteger(maxPhyAddr) || maxPhyAddr < least || maxPhyAddr > most)
      throw new RangeError(`MAXPHYADDR ${maxPhyAddr} is out of range: ${least} … ${most}`);
    this.spec = spec;
    this.options = options;
    for (const level of spec.levels) this.#levels[level.level] = level;
    this.rootLevel = Math.max(...spec.levels.map((level) => level.level));
    const size = this.rootLevel + 1;
    const pageBits = spec.pageBits ?? 12;
    this.pageSize = 2 ** pageBits;
    this.entryBytes = spec.entryBytes ?? 8;
    this.wordShift = this.entryBytes === 8 ? 1 : 0;
    this.perFrameBits = 10 - this.wordShift;
    this.perFrameMask = (1 << this.perFrameBits) - 1;
    this.entries = new Int32Array(size);
    this.tableFrames = new Int32Array(size);
    this.span = new Float64Array(size);
    this.span[0] = 1;
    let covered = 2 ** (pageBits - 12);
    for (let level = 1; level < size; level++) {
      this.span[level] = covered;
      this.entries[level] = 2 ** (this.level(level).indexBits ?? 9);
      this.tableFrames[level] = Math.ceil((this.entries[level]! * this.entryBytes) / 4096);
      covered *= this.entries[level]!;
    }
    this.inputFrames = covered;
    this.inverseSpan = this.span.map((span) => 1 / span);
    this.reservedLo = new Int32Array(2 * size);
    this.reservedHi = new Int32Array(2 * size);
    this.addressLo = new Int32Array(2 * size);
    this.addressHi = new Int32Array(2 * size);
    this.#extraLo = new Int32Array(2 * size);
    this.anyAddressLo = new Int32Array(2 * size);
    this.lastFrame = new Float64Array(size);
    this.#withholding = Array.from({ length: 2 * size }, () => []);
    const roles = spec.roles;
    const down = spec.addressDown ?? 0;
    this.#addressShift = 12 - down;
    this.#highScale = 2 ** (20 + down);
    const extra = spec.fields.find((field) => field.name === roles.addressHigh?.name);
    this.isPlain = down === 0 && !extra && this.entryBytes === 8;
    this.#extraShift = extra ? extra.bits[1] : 0;
    this.#extraScale = roles.addressHigh ? 2 ** (roles.addressHigh.to - 12) : 0;
    this.presentLo = roles.present.reduce((mask, name) => mask | this.#bit(name).lo, 0);
    this.pageLo =
      spec.leaf.otherwise === 'absent' ? spec.leaf.fields.reduce((mask, name) => mask | this.#bit(name).lo, 0) : 0;
    for (const { level } of spec.levels) {
      for (const kind of KINDS) {
        const slot = 2 * level + (kind === 'leaf' ? 1 : 0);
        const reserved = words(this.reservedMask(level, kind));
        this.reservedLo[slot] = reserved.lo;
        this.reservedHi[slot] = reserved.hi;
        const address = words(this.#mainAddressMask(level, kind));
        this.addressLo[slot] = address.lo;
        this.addressHi[slot] = address.hi;
        this.#extraLo[slot] = words(this.#extraAddressMask(level, kind)).lo;
        this.anyAddressLo[slot] = address.lo | this.#extraLo[slot]!;
        const main = Number((this.#mainAddressMask(level, kind) << BigInt(down)) >> 12n);
        const high = (this.#extraLo[slot]! >>> this.#extraShift) * this.#extraScale;
        this.lastFrame[level] = main + high + this.span[level]! - 1;
        this.#withholding[slot] = this.#withholdings(level, kind).filter(({ lo }) => !lo);
      }
    }
    this.accessedLo = this.#bit(roles.accessed).lo;
    this.accessedAt = new Int32Array(size);
    for (const { level } of spec.levels) {
      const kinds = KINDS.filter((kind) => this.fields(level, kind).some(({ name }) => name === roles.accessed));
      if (kinds.length > 0) this.accessedAt[level] = this.accessedLo;
    }
    this.dirtyLo = this.#bit(roles.dirty).lo;
    this.writeLo = this.#bit(roles.write).lo;
    this.userLo = this.#bit(roles.user).lo;
    this.globalLo = this.#bit(roles.global).lo;
    const privacy = this.fields(1, 'leaf').find(
      ({ name, requires }) => requires !== undefined && (name === 'C' || name === 'S'),
    );
    this.privacyHi = privacy ? (1 << (privacy.bits[0] - 32)) >>> 0 : 0;
    this.setIsPrivate = privacy?.name === 'C';
    this.#noExecuteHi = this.#bit(roles.noExecute).hi;
    this.#keyMaskHi = this.#bit(roles.protectionKey).hi;
    this.#keyShiftHi = this.#keyMaskHi === 0 ? 0 : 31 - Math.clz32(this.#keyMaskHi & -this.#keyMaskHi);
    this.#leafMarks = spec.leaf.fields.reduce((mask, name) => mask | this.#bit(name).lo, 0);
    this.#restricted = spec.fields.filter(({ legal }) => legal !== undefined);
    this.#told = 2 ** this.#toldBits();
    this.#takenLow = this.#compileTaken();
    this.#low = this.#compileLow();
    this.tellsUsers = spec.fields.some(({ withholds = {} }) =>
      Object.values(withholds).some((taken) => (taken & 7) !== taken >>> 3),
    );
  }

  /** Mask of a field by name; zero for a role that the format lacks. */
  #bit(name: string | undefined): Words {
    const field = this.spec.fields.find((candidate) => candidate.name === name);
    return field ? words(fieldMask(field)) : { lo: 0, hi: 0 };
  }

  #withholdings(level: number, kind: EntryKind): Withholding[] {
    return this.fields(level, kind)
      .filter((field) => field.withholds !== undefined)
      .map(({ bits: [high, low], withholds }) => {
        const values = 2 ** (high - low + 1);
        const takes = Uint8Array.from({ length: values }, (_, value) => withholds![value] ?? 0);
        return { lo: low < 32, shift: low % 32, mask: values - 1, takes };
      });
  }

  level(level: number): Level {
    const found = this.#levels[level];
    if (!found) throw new RangeError(`${this.spec.title} has no level ${level}`);
    return found;
  }

  /** What the manual calls a level. */
  number(level: number): number {
    return this.level(level).number ?? level;
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

  /** Bits of the field that holds a frame's address, or its larger part, up to MAXPHYADDR. */
  #mainAddressMask(level: number, kind: EntryKind): bigint {
    const field = this.fields(level, kind).find((candidate) => candidate.name === this.spec.roles.address);
    const width = (1n << BigInt(this.options.maxPhyAddr - (this.spec.addressDown ?? 0))) - 1n;
    return field ? fieldMask(field) & width : 0n;
  }

  #extraAddressMask(level: number, kind: EntryKind): bigint {
    const { addressHigh } = this.spec.roles;
    const field = this.fields(level, kind).find((candidate) => candidate.name === addressHigh?.name);
    if (!field || !addressHigh) return 0n;
    const used = Math.max(0, this.options.maxPhyAddr - addressHigh.to);
    return fieldMask(field) & (((1n << BigInt(used)) - 1n) << BigInt(field.bits[1]));
  }

  /** Bits of an entry that hold an address, up to MAXPHYADDR. */
  addressMask(level: number, kind: EntryKind): bigint {
    return this.#mainAddressMask(level, kind) | this.#extraAddressMask(level, kind);
  }

  /** Bits that must be zero in a present entry: those of no field, and address bits from MAXPHYADDR up. */
  reservedMask(level: number, kind: EntryKind): bigint {
    const { address, addressHigh } = this.spec.roles;
    const isAddress = (field: Field): boolean => field.name === address || field.name === addressHigh?.name;
    const fields = this.fields(level, kind);
    const width = (1n << BigInt(8 * this.entryBytes)) - 1n;
    const usable = this.addressMask(level, kind);
    if (this.spec.unused === 'ignored')
      return fields.filter(isAddress).reduce((mask, field) => mask | fieldMask(field), 0n) & ~usable;
    const used = fields.filter((field) => !isAddress(field)).reduce((mask, field) => mask | fieldMask(field), usable);
    return width & ~used;
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
    if ((hi & this.#noExecuteHi) !== 0) judged &= ~(ACC_EXEC << 2);
    return judged;
  }

  /** Whether an entry is present and sets a reserved bit or an illegal combination. */
  isMalformed(level: number, lo: number, hi: number): boolean {
    return (this.judge(level, lo, hi) & MALFORMED) !== 0;
  }

  #compileLow(): Uint8Array {
    const low = new Uint8Array((this.rootLevel + 1) << 12);
    for (const { level } of this.spec.levels) {
      const mark = this.#markBits(level);
      for (let bits = 0; bits < this.#told; bits++) {
        const state = this.#stateOf(level, bits, mark);
        if (state === ABSENT) continue;
        const leaf = state === LEAF;
        low[(level << 12) | bits] =
          state |
          (accessOf(this.#rightsOf(2 * level + (leaf ? 1 : 0), bits, 0)) << 2) |
          (this.#illegal(level, leaf, bits) === undefined ? 0 : MALFORMED);
      }
      repeat(low, level, this.#told);
    }
    return low;
  }

  /** Bits of a level's entries that mark a leaf, or a table. */
  #markBits(level: number): number {
    return this.fields(level, 'leaf')
      .filter(({ name }) => this.spec.leaf.fields.includes(name))
      .reduce((mask, field) => mask | words(fieldMask(field)).lo, 0);
  }

  #stateOf(level: number, bits: number, mark: number): number {
    const { when, otherwise } = this.spec.leaf;
    if ((bits & this.presentLo) === 0) return ABSENT;
    const set = (bits & mark) !== 0;
    if (level === 1) return set || otherwise !== 'absent' ? LEAF : ABSENT;
    if (set !== (when === 'any-set')) return TABLE;
    // A format whose entries say `leaf` where none may be has nothing there; others reserve the bit.
    return this.isLargeLevel(level) ? LEAF : when === 'clear' ? ABSENT : TABLE;
  }

  /** Says which combination of legal bits the walk refuses, if any. Such rules concern bits 11:0 only. */
  illegalWords(level: number, lo: number): string | undefined {
    return this.#illegal(level, this.classify(level, lo) === LEAF, lo);
  }

  #illegal(level: number, leaf: boolean, lo: number): string | undefined {
    if (level === 1 && this.spec.leaf.otherwise === 'malformed' && (lo & this.#leafMarks) === 0)
      return 'a pointer to a table, at the last level';
    for (const rule of this.spec.illegal) {
      if ((lo & rule.mask) === rule.value && !(rule.unless && this.options.features.has(rule.unless)))
        return rule.words;
    }
    for (const field of this.#restricted) {
      if (!field.legal || !fieldApplies(field, level, leaf ? 'leaf' : 'table')) continue;
      const [high, low] = field.bits;
      const value = (lo >>> low) & ((1 << (high - low + 1)) - 1);
      if (!field.legal.includes(value)) return `${field.name} ${value} is not defined`;
    }
    return undefined;
  }

  /** The 4K frame an entry points to: the next table's first or the page's first. */
  frame(level: number, lo: number, hi: number): number {
    const slot = 2 * level + ((this.#low[(level << 12) | (lo & 0xfff)]! >>> 1) & 1);
    const low = (lo & this.addressLo[slot]!) >>> this.#addressShift;
    const high = hi & this.addressHi[slot]!;
    const extra = lo & this.#extraLo[slot]!;
    if (extra !== 0) return low + high * this.#highScale + (extra >>> this.#extraShift) * this.#extraScale;
    // Most frames fit 20 bits of the low word: kept an integer, they cost no floating point.
    return high === 0 ? low : low + high * this.#highScale;
  }

  /** The low word of an entry that points to a frame and says nothing else. */
  frameLo(frame: number): number {
    const extra = this.#extraScale === 0 ? 0 : Math.floor(frame / this.#extraScale);
    const main = frame - extra * this.#extraScale;
    return ((main % this.#highScale) * 2 ** this.#addressShift + extra * 2 ** this.#extraShift) >>> 0;
  }

  /** The high word of the same. */
  frameHi(frame: number): number {
    const main = this.#extraScale === 0 ? frame : frame % this.#extraScale;
    return Math.floor(main / this.#highScale);
  }

  /** How many of bits 11:0, from the lowest, any rule looks at. */
  #toldBits(): number {
    const { fields, leaf, illegal } = this.spec;
    const rules = illegal.reduce((mask, rule) => mask | rule.mask, this.presentLo);
    const told = fields
      .filter(({ name, legal, withholds }) => legal || withholds || leaf.fields.includes(name))
      .reduce((mask, field) => mask | (words(fieldMask(field)).lo & 0xfff), rules & 0xfff);
    return 32 - Math.clz32(told);
  }

  #compileTaken(): Uint8Array {
    const taken = new Uint8Array((2 * this.rootLevel + 2) << 12);
    for (const { level } of this.spec.levels) {
      for (const [leaf, kind] of KINDS.entries()) {
        const slot = 2 * level + leaf;
        const low = this.#withholdings(level, kind).filter(({ lo }) => lo);
        for (let bits = 0; bits < this.#told; bits++)
          for (const { shift, mask, takes } of low) taken[(slot << 12) | bits]! |= takes[(bits >>> shift) & mask]!;
        repeat(taken, slot, this.#told);
      }
    }
    return taken;
  }

  #rightsOf(slot: number, lo: number, hi: number): number {
    let taken = this.#takenLow[(slot << 12) | (lo & 0xfff)]!;
    const upper = this.#withholding[slot]!;
    for (let i = 0; i < upper.length; i++) {
      const { shift, mask, takes } = upper[i]!;
      taken |= takes[(hi >>> shift) & mask]!;
    }
    return ALL_RIGHTS & ~taken;
  }

  /** Rights (SUPER_*, USER_*) that one entry leaves. */
  rights(level: number, lo: number, hi: number): number {
    return this.#rightsOf(2 * level + (this.classify(level, lo) === LEAF ? 1 : 0), lo, hi);
  }

  /** What accumulated rights come to, where some exclude others. */
  effective(rights: number): number {
    const { implied } = this.spec;
    return implied && (rights & implied.when) !== 0 ? rights & ~implied.takes : rights;
  }

  /** Rights of one entry in ACC_* bits. Where the format has no user bit, ACC_USER means readable, as for KVM's EPT. */
  access(level: number, lo: number, hi: number): number {
    return accessOf(this.rights(level, lo, hi));
  }

  /** The protection key of a leaf; 0 in a format without keys. */
  keyOf(hi: number): number {
    return (hi & this.#keyMaskHi) >>> this.#keyShiftHi;
  }

  indexOf(frame: number, level: number): number {
    return (frame * this.inverseSpan[level]!) & (this.entries[level]! - 1);
  }
}

/** Fills 4096 places of a table with what its first few are. */
function repeat(table: Uint8Array, slot: number, few: number): void {
  const start = slot << 12;
  for (let done = few; done < 4096; done *= 2)
    table.copyWithin(start + done, start, start + Math.min(done, 4096 - done));
}

function accessOf(rights: number): number {
  return (
    ((rights & SUPER_EXEC) !== 0 ? ACC_EXEC : 0) |
    ((rights & SUPER_WRITE) !== 0 ? ACC_WRITE : 0) |
    ((rights & USER_READ) !== 0 ? ACC_USER : 0)
  );
}
