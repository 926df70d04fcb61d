import { ACC_EXEC, ACC_USER, ACC_WRITE, type Format } from '../formats/compile.ts';
import { type Entry, encodeLeaf, encodeTable } from '../formats/encode.ts';
import { frameToAddress, type Gfn, hex, type Pfn, toBigint } from '../memory/words.ts';

/**
 * What KVM puts into second-stage entries beyond the format: its own bits, and values that are not translations
 * (KVM: `arch/x86/kvm/mmu/spte.h`).
 */

/** SHADOW_NONPRESENT_VALUE: bit 63 suppresses #VE under EPT and is ignored under NPT. */
export const emptyEntry: Entry = { lo: 0, hi: 0x8000_0000 };
/** FROZEN_SPTE: a thread is changing the entry; whoever meets it retries. */
export const frozenEntry: Entry = { lo: 0x5a0, hi: 0x8000_0000 };

const MMU_PRESENT = 1 << 11;
/** MMIO entries keep the memslot generation: 8 bits from bit 3, 11 bits from bit 52. */
const GENERATION_LOW_SHIFT = 3;
const GENERATION_LOW_MASK = 0xff;
const GENERATION_HIGH_SHIFT_HI = 20;
export const GENERATION_MASK = 2 ** 19 - 1;

/** SHADOW_NONPRESENT_OR_RSVD_MASK_LEN: how many address bits L1TF makes KVM move, and how many values they have. */
const HIDDEN_BITS = 5;
const HIDDEN = 2 ** HIDDEN_BITS;
/** Physical address bits with which KVM still takes a processor for one with L1TF: there must be room above them. */
export const L1TF_MOST_BITS = 46;

/** How KVM encodes entries of one format: everything in which EPT and NPT differ. */
export interface SpteFormat {
  readonly format: Format;
  readonly hostWritable: Entry;
  readonly mmuWritable: Entry;
  /** Value whose bits make a present-looking entry fault as reserved; null where no bit is left for it. */
  readonly mmio: Entry | null;
  readonly mmioMask: Entry;
  /**
   * On a processor with L1TF, the first of the 5 highest physical address bits, as a bit of a frame number: in a marker they are 1, for
   * an address that no memory has, and the gfn's own stand above (`shadow_nonpresent_or_rsvd_mask`).
   */
  readonly hiddenFrom: number | undefined;
  /** The access that `handle_mmio_page_fault` reads back from the marker, as ACC_* bits. */
  readonly mmioAccess: number;
  /** The bits that make a leaf executable, and those that make it none. */
  readonly execute: { readonly set: Entry; readonly clear: Entry };
  /** `clean` is writable, without D; `protected` is the host's to write, but a shadowed table. */
  readonly leafTemplates: readonly Readonly<Record<'writable' | 'clean' | 'readonly' | 'protected', Entry>>[];
}

const cache = new WeakMap<Format, SpteFormat>();

export function spteFormat(format: Format): SpteFormat {
  let found = cache.get(format);
  if (!found) {
    found = build(format);
    cache.set(format, found);
  }
  return found;
}

const mask = (format: Format, name: string): Entry => {
  const field = format.spec.fields.find((candidate) => candidate.name === name)!;
  const bit = field.bits[1];
  return bit < 32 ? { lo: (1 << bit) >>> 0, hi: 0 } : { lo: 0, hi: (1 << (bit - 32)) >>> 0 };
};

function build(format: Format): SpteFormat {
  const ept = !format.tellsUsers;
  const hostWritable = mask(format, 'host-writable');
  const mmuWritable = mask(format, 'MMU-writable');
  // EPT: writable and executable but not readable. NPT: present, with reserved address bit 51 (none left at 52 bits).
  // There the access that KVM keeps in the marker is W and U.
  const mmio = ept ? { lo: 0b110, hi: 0 } : format.options.maxPhyAddr < 52 ? { lo: 0b111, hi: 1 << 19 } : null;
  // Processors of few address bits reach their cache by 44 all the same (x86_cache_bits).
  const cacheBits = Math.max(44, format.options.maxPhyAddr);
  const hasHidden = format.options.features.has('l1tf') && cacheBits <= L1TF_MOST_BITS;
  const leafTemplates = [0, 1, 2, 3].map((level) => {
    if (level === 0 || !format.isLargeLevel(level))
      return { writable: emptyEntry, clean: emptyEntry, readonly: emptyEntry, protected: emptyEntry };
    const leaf = (write: boolean, dirty = write): Entry => {
      const accessed = { [format.spec.roles.accessed!]: 1, ...(dirty ? { [format.spec.roles.dirty!]: 1 } : {}) };
      const memoryType = ept ? { 'memory type': 6 } : {};
      const entry = encodeLeaf(format, level, 0, { write, execute: true, user: true }, { ...accessed, ...memoryType });
      const own = write ? [hostWritable, mmuWritable] : [];
      return {
        lo: own.reduce((lo, bits) => lo | bits.lo, entry.lo | MMU_PRESENT) >>> 0,
        hi: own.reduce((hi, bits) => hi | bits.hi, entry.hi) >>> 0,
      };
    };
    const readonly = leaf(false);
    return {
      writable: leaf(true),
      clean: leaf(true, false),
      readonly,
      protected: { lo: (readonly.lo | hostWritable.lo) >>> 0, hi: (readonly.hi | hostWritable.hi) >>> 0 },
    };
  });
  const [yes, no] = [true, false].map((execute) => encodeLeaf(format, 1, 0, { write: true, execute, user: true }));
  return {
    format,
    hostWritable,
    mmuWritable,
    execute: {
      set: { lo: yes!.lo & ~no!.lo, hi: yes!.hi & ~no!.hi },
      clear: { lo: no!.lo & ~yes!.lo, hi: no!.hi & ~yes!.hi },
    },
    mmio,
    hiddenFrom: hasHidden ? cacheBits - HIDDEN_BITS - 12 : undefined,
    // What x86's marker grants is of no account: shadow tables keep the guest's rights there.
    mmioMask: ept ? { lo: 0b111, hi: 0 } : { lo: 1, hi: 1 << 19 },
    mmioAccess: ept ? 0 : 0b110,
    leafTemplates,
  };
}

/** is_shadow_present_pte */
export function isPresent(lo: number): boolean {
  return (lo & MMU_PRESENT) !== 0;
}

export function isFrozen(lo: number, hi: number): boolean {
  return lo === frozenEntry.lo && hi >>> 0 === frozenEntry.hi;
}

export function isMmio(spte: SpteFormat, lo: number, hi: number): boolean {
  return (
    spte.mmio !== null &&
    (lo & spte.mmioMask.lo) === (spte.mmio.lo & spte.mmioMask.lo) &&
    (hi & spte.mmioMask.hi) === spte.mmio.hi &&
    (lo & MMU_PRESENT) === 0
  );
}

/** How far a page may be written: `protected` where a guest's table is shadowed that the host would let be written. */
export type Writability = 'writable' | 'protected' | 'read-only';

/**
 * make_spte, for a direct map: all rights but W where the host or the slot withholds it. Over an entry of the last level that was
 * writable already D is left to the processor, and a stale MMIO marker of KVM's passes for such an entry (bit 1).
 */
export function makeLeaf(spte: SpteFormat, level: number, pfn: Pfn, writability: Writability, old = emptyEntry): Entry {
  const template = spte.leafTemplates[level]!;
  const wasWritable = level === 1 && (old.lo & spte.format.writeLo) !== 0;
  const { clean, writable, readonly, protected: kept } = template;
  const entry =
    writability === 'writable' ? (wasWritable ? clean : writable) : writability === 'protected' ? kept : readonly;
  return { lo: (entry.lo | spte.format.frameLo(pfn)) >>> 0, hi: (entry.hi | spte.format.frameHi(pfn)) >>> 0 };
}

/** SPTE_TDP_AD_DISABLED, of two bits in the upper word. */
export const AD_DISABLED_HI = 1 << 20;

/** make_nonleaf_spte @param withoutBits whether the processor keeps no accessed and dirty bits there */
export function makeTable(spte: SpteFormat, level: number, child: Pfn, withoutBits = false): Entry {
  const { lo, hi } = encodeTable(spte.format, level, child);
  if (withoutBits) return { lo: (lo | MMU_PRESENT) >>> 0, hi: (hi | AD_DISABLED_HI) >>> 0 };
  return { lo: (lo | MMU_PRESENT | spte.format.accessedLo) >>> 0, hi };
}

/** A gfn as markers have it: with its highest bits moved up, and 1 in their place, where the processor has L1TF. */
function hideGfn({ hiddenFrom }: SpteFormat, gfn: Gfn): number {
  if (hiddenFrom === undefined) return gfn;
  const unit = 2 ** hiddenFrom;
  return (gfn % unit) + (HIDDEN - 1) * unit + (Math.floor(gfn / unit) % HIDDEN) * unit * HIDDEN;
}

/** make_mmio_spte. Only where `mmio` is not null. */
export function makeMmio(spte: SpteFormat, gfn: Gfn, generation: number): Entry {
  const gen = generation % (GENERATION_MASK + 1);
  const frame = hideGfn(spte, gfn);
  const low = gen & GENERATION_LOW_MASK;
  const high = gen >>> 8;
  return {
    lo: (spte.mmio!.lo | (low << GENERATION_LOW_SHIFT) | spte.format.frameLo(frame)) >>> 0,
    hi: (spte.mmio!.hi | (high << GENERATION_HIGH_SHIFT_HI) | spte.format.frameHi(frame)) >>> 0,
  };
}

/** get_mmio_spte_gfn: the marker's own bits lie above the address; where parts of it are hidden, both are put together. */
export function mmioGfn(spte: SpteFormat, lo: number, hi: number): Gfn {
  if (spte.hiddenFrom === undefined) return spte.format.frame(1, lo, hi & 0x7ffff);
  // The format knows no address bits as high as that.
  const frame = (hi & 0x7ffff) * 2 ** 20 + (lo >>> 12);
  const unit = 2 ** spte.hiddenFrom;
  return (frame % unit) + (Math.floor(frame / (unit * HIDDEN)) % HIDDEN) * unit;
}

export function mmioGeneration(lo: number, hi: number): number {
  return ((lo >>> GENERATION_LOW_SHIFT) & GENERATION_LOW_MASK) | ((hi >>> GENERATION_HIGH_SHIFT_HI) << 8);
}

/** is_access_allowed: `needs` in ACC_* bits. */
export function allows(spte: SpteFormat, lo: number, hi: number, needs: number): boolean {
  // Entries of every level of EPT and NPT say their rights alike.
  return (spte.format.access(1, lo, hi) & needs) === needs;
}

export function isMmuWritable(spte: SpteFormat, lo: number, hi: number): boolean {
  return (lo & spte.mmuWritable.lo) !== 0 || (hi & spte.mmuWritable.hi) !== 0;
}

/** The entry with W set or cleared; KVM's own bits stay, so that a fast fault can give W back. */
export function withWrite(spte: SpteFormat, entry: Entry, write: boolean): Entry {
  const { writeLo } = spte.format;
  return { lo: (write ? entry.lo | writeLo : entry.lo & ~writeLo) >>> 0, hi: entry.hi };
}

/** make_spte_executable, make_spte_nonexec */
export function withExecute({ execute: { set, clear } }: SpteFormat, { lo, hi }: Entry, execute: boolean): Entry {
  const [on, off] = execute ? [set, clear] : [clear, set];
  return { lo: ((lo & ~off.lo) | on.lo) >>> 0, hi: ((hi & ~off.hi) | on.hi) >>> 0 };
}

/** What an entry of KVM's is, beyond what the format says. */
export function spteNote(spte: SpteFormat, lo: number, hi: number): string | undefined {
  if (isFrozen(lo, hi)) return 'frozen: a thread is changing this entry';
  if (isMmio(spte, lo, hi))
    return `MMIO marker${hiddenWords(spte, lo, hi)}, memslot generation ${mmioGeneration(lo, hi)}: KVM makes such accesses fault at once`;
  if (toBigint(lo, hi) === toBigint(emptyEntry.lo, emptyEntry.hi)) return 'empty';
  return undefined;
}

/** The address of a marker that does not show it. */
function hiddenWords(spte: SpteFormat, lo: number, hi: number): string {
  if (spte.hiddenFrom === undefined) return '';
  const first = spte.hiddenFrom + 12;
  const [last, above] = [first + HIDDEN_BITS - 1, first + HIDDEN_BITS];
  const address = hex(frameToAddress(mmioGfn(spte, lo, hi)));
  return ` of gpa ${address}, whose bits ${last}:${first} stand in ${last + HIDDEN_BITS}:${above} because of L1TF`;
}

/** The rights that an access needs of an entry, in ACC_* bits. */
export function needed(write: boolean, exec: boolean): number {
  return exec ? ACC_EXEC : write ? ACC_WRITE | ACC_USER : ACC_USER;
}
