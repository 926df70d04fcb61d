/**
 * What the tracepoints that are understood print, as templates that are read backwards (mmutrace.h and trace.h of
 * arch/x86/kvm, include/trace/events/kvm.h, Linux 5.10 to 7.1; libtraceevent's plugin_kvm.c for what trace-cmd prints of its own).
 */
import { ROLE_IN_TEXT } from '../../engine/history/recording.ts';
import { fieldIndex, TRACEPOINTS } from '../../engine/history/tracepoints.ts';
import { exitReason } from './exit-reasons.ts';
import { Names } from './names.ts';
import { isDigit, isSpace, SPACE, TextCursor } from './text-cursor.ts';

const FIELDS_MOST = Math.max(...TRACEPOINTS.map((tracepoint) => tracepoint.fields.length));

/** A line's text, and what has been read of it. */
export class TextValues extends TextCursor {
  readonly lo_ = new Uint32Array(FIELDS_MOST);
  readonly hi_ = new Uint32Array(FIELDS_MOST);
  /** A bit for each field that was read. */
  known = 0;
  roleKnown = 0;
  /** Whether pointers are printed as they are: tracefs prints hashes of them. */
  pointers = true;

  begin(): void {
    this.known = 0;
    this.roleKnown = 0;
  }

  set(field: number, lo: number, hi = 0): true {
    this.lo_[field] = lo;
    this.hi_[field] = hi;
    this.known |= 1 << field;
    return true;
  }
}

type Op = (values: TextValues) => boolean;

const latin = (text: string): Uint8Array => Uint8Array.from(text, (char) => char.charCodeAt(0));

/** One of several words. */
function choice(field: number, words: Readonly<Record<string, number>>): Op {
  const list = Object.entries(words).map(([word, value]) => ({ bytes: latin(word), value }));
  return (values) => {
    for (const { bytes, value } of list) if (values.literal(bytes)) return values.set(field, value);
    return false;
  };
}

/** A flag's letter or `-`. */
function letter(field: number, char: string): Op {
  const [yes] = latin(char);
  return (values) => {
    const byte = values.bytes[values.at];
    if (values.at >= values.end || (byte !== yes && byte !== 0x2d)) return false;
    values.at++;
    return field < 0 || values.set(field, byte === yes ? 1 : 0);
  };
}

// ------------------------------------------------------------------------------------------------------------- specials

/** PFERR_* of Linux 7.1 as __print_flags writes them. */
const FLAGS: readonly (readonly [name: Uint8Array, bit: number])[] = Object.entries({
  // Longer names before those they begin with.
  PK: 1 << 5,
  SS: 1 << 6,
  SGX: 1 << 15,
  RSVD: 1 << 3,
  P: 1 << 0,
  W: 1 << 1,
  U: 1 << 2,
  F: 1 << 4,
}).map(([name, bit]) => [latin(name), bit] as const);

/** `P|W|0x100000000`: names, then bits without one; nothing, or `0`, for 0. */
function flags(field: number): Op {
  const bar = latin('|');
  return (values) => {
    let lo = 0;
    let hi = 0;
    do {
      if (values.at < values.end && isDigit(values.bytes[values.at]!)) {
        if (!values.hex()) return false;
        lo |= values.lo;
        hi |= values.hi;
        continue;
      }
      const found = FLAGS.find(([name]) => values.literal(name));
      if (!found) break;
      lo |= found[1];
    } while (values.literal(bar));
    return values.set(field, lo >>> 0, hi >>> 0);
  };
}

const ACCESS = ['---', '--x', 'w--', 'w-x', '-u-', '-ux', 'wu-', 'wux'].map(latin);
const DIRECT = latin(' direct');
const INVALID = latin(' invalid');
const NOT = latin('!');
const QUADRANT = latin(' q');
const BYTES = latin('-byte');
const LEVEL = latin('l');
const EFER_NX = latin('nxe');
const AD = latin('ad');
const PAE = latin('pae');
const WP = latin('wp');
const SMEP = latin(' smep');
const SMAP = latin(' smap');
const SMM = latin(' smm');

/** What kernel and plugin print alike: quadrant, direct, access, invalid. Undefined where it is not that. */
function roleMiddle(values: TextValues): number | undefined {
  if (!values.literal(QUADRANT)) return undefined;
  const quadrant = values.count(1);
  if (quadrant < 0 || quadrant > 3) return undefined;
  let role = quadrant << 5;
  if (values.literal(DIRECT)) role |= 1 << 7;
  values.spaces();
  const access = ACCESS.findIndex((word) => values.literal(word));
  if (access < 0) return undefined;
  role |= access << 8;
  if (values.literal(INVALID)) role |= 1 << 11;
  values.spaces();
  return role;
}

/** `!nxe`: whether the word stands there without its `!`; undefined where it is neither. */
function unlessNot(values: TextValues, word: Uint8Array): boolean | undefined {
  const not = values.literal(NOT);
  if (!values.literal(word)) return undefined;
  values.spaces();
  return !not;
}

/** `l4 8-byte q0 direct wux nxe ad`, as the kernel prints a role. */
function role(field: number): Op {
  return (values) => {
    if (!values.literal(LEVEL)) return false;
    const level = values.count(2);
    values.spaces();
    const bytes = values.count(1);
    if (level < 0 || level > 15 || (bytes !== 4 && bytes !== 8) || !values.literal(BYTES)) return false;
    const middle = roleMiddle(values);
    const nxe = middle === undefined ? undefined : unlessNot(values, EFER_NX);
    const ad = nxe === undefined ? undefined : unlessNot(values, AD);
    if (middle === undefined || ad === undefined) return false;
    values.roleKnown = ROLE_IN_TEXT;
    return values.set(field, level | (bytes === 4 ? 1 << 4 : 0) | middle | (nxe ? 1 << 12 : 0) | (ad ? 0 : 1 << 16));
  };
}

/**
 * Bits that the plugin prints: level, quadrant to cr0_wp, SMEP, SMAP, SMM. Of bit 4 it says "pae", which up to Linux 5.17 was true,
 * and since then is the opposite: not known. Of smm it says whether it is 0; other values than 1 have no meaning yet.
 */
const ROLE_OF_PLUGIN = 0xff00ffef;

/** `4 q0 direct wux !pae nxe wp smep smap smm`, as the plugin prints a role. */
function pluginRole(field: number): Op {
  return (values) => {
    const level = values.count(2);
    const middle = level < 0 || level > 15 ? undefined : roleMiddle(values);
    const pae = middle === undefined ? undefined : unlessNot(values, PAE);
    const nxe = pae === undefined ? undefined : unlessNot(values, EFER_NX);
    const wp = nxe === undefined ? undefined : unlessNot(values, WP);
    if (middle === undefined || wp === undefined) return false;
    let word = level | middle | (nxe ? 1 << 12 : 0) | (wp ? 1 << 13 : 0);
    if (values.literal(SMEP)) word |= 1 << 14;
    if (values.literal(SMAP)) word |= 1 << 15;
    if (values.literal(SMM)) word |= 1 << 24;
    values.roleKnown = ROLE_OF_PLUGIN >>> 0;
    return values.set(field, word);
  };
}

/** A reason's name goes up to " rip ", and may have spaces. */
function reason(kind: number): Op {
  const reasonField = fieldIndex(kind, 'exit_reason');
  const isaField = fieldIndex(kind, 'isa');
  const names = new Names(exitReason);
  const rip = latin('rip ');
  return (values) => {
    const from = values.at;
    for (; values.at < values.end; values.at++) {
      if (!isSpace(values.bytes[values.at]!)) continue;
      const space = values.at;
      values.spaces();
      const then = values.at;
      const ends = values.literal(rip);
      values.at = ends ? then : space;
      if (!ends) continue;
      const found = names.find(values.bytes, from, space);
      if (found) values.set(reasonField, found.reason);
      if (found?.isa) values.set(isaField, found.isa);
      return true;
    }
    return false;
  };
}

/** Vectors by the names that kvm_inj_exception prints, without their `#`. */
const EXCEPTIONS: Readonly<Record<string, number>> = Object.fromEntries(
  'DE0 DB1 BP3 OF4 BR5 UD6 NM7 DF8 TS10 NP11 SS12 GP13 PF14 MF16 AC17 MC18 XM19 VE20 CP21 HV28 VC29 SX30'
    .split(' ')
    .map((text) => [`#${text.slice(0, 2)}`, Number(text.slice(2))]),
);
/** Those that push an error code (SDM vol. 3, table 7-1; APM vol. 2, table 8-1). */
const WITH_ERROR = new Set(
  ['#DF', '#TS', '#NP', '#SS', '#GP', '#PF', '#AC', '#CP', '#VC', '#SX'].map((name) => EXCEPTIONS[name]),
);

/** `#PF (0x7) [reinjected]`; kernels up to 5.17 print `(0x0)` also where there is no error code. */
function exception(kind: number): Op {
  const vector = fieldIndex(kind, 'exception');
  const named = choice(vector, EXCEPTIONS);
  const error = fieldIndex(kind, 'error_code');
  const hasError = fieldIndex(kind, 'has_error');
  const reinjected = fieldIndex(kind, 'reinjected');
  const open = latin(' (');
  const close = latin(')');
  const again = latin(' [reinjected]');
  return (values) => {
    if (!named(values)) {
      if (!values.hex()) return false;
      values.set(vector, values.lo, values.hi);
    }
    const has = WITH_ERROR.has(values.lo_[vector]);
    if (values.literal(open)) {
      if (!values.hex() || !values.literal(close)) return false;
      values.set(error, values.lo, values.hi);
      values.set(hasError, has ? 1 : 0);
    } else values.set(hasError, 0);
    return values.set(reinjected, values.literal(again) ? 1 : 0);
  };
}

/** A pointer, which counts only where it is no hash. */
function pointer(field: number): Op {
  const nothing = latin('(null)');
  return (values) => {
    if (values.literal(nothing)) return values.set(field, 0);
    if (!values.hex()) return false;
    return !values.pointers || values.set(field, values.lo, values.hi);
  };
}

/** `[immediate exit]`; kernels that print an intr_info know the field, of others its absence says nothing. */
function immediate(field: number, tells: boolean): Op {
  const words = latin(' [immediate exit]');
  return (values) => (values.literal(words) ? values.set(field, 1) : !tells || values.set(field, 0));
}

/** A guest function that the plugin may print behind rip: ` name+0x12`. */
const skipFunction: Op = (values) => {
  const info = latin(' info ');
  while (values.at < values.end) {
    const { at } = values;
    if (values.literal(info)) {
      values.at = at;
      return true;
    }
    values.at++;
  }
  return false;
};

function special(kind: number, name: string): Op {
  const field = (of: string): number => fieldIndex(kind, of);
  switch (name) {
    case 'rwxu': {
      const [r, w, x, u] = [letter(field('r'), 'r'), letter(-1, 'w'), letter(field('x'), 'x'), letter(field('u'), 'u')];
      // No letter for u: the field is −1, "not tracked".
      return (values) =>
        r(values) && w(values) && x(values) && (u(values) || values.set(field('u'), 0xffffffff, 0xffffffff));
    }
    case 'flags':
      return flags(field('error_code'));
    case 'sptep':
      return pointer(field('sptep'));
    case 'immediate':
      return immediate(field('immediate_exit'), true);
    case 'perhaps-immediate':
      return immediate(field('immediate_exit'), false);
    case 'reason':
      return reason(kind);
    case 'function':
      return skipFunction;
    case 'exception':
      return exception(kind);
    case 'mmio':
      return choice(field('type'), { 'unsatisfied-read': 0, read: 1, write: 2 });
    case 'role':
      return role(field('role'));
    case 'plugin-role':
      return pluginRole(field('role'));
    case 'sync':
      return choice(field('unsync'), { unsync: 1, sync: 0 });
    case 'created':
      return choice(field('created'), { new: 1, existing: 0 });
    default:
      throw new RangeError(`no special ${name}`);
  }
}

// ------------------------------------------------------------------------------------------------------------ templates

/** `{FIELD}` is hexadecimal, `{FIELD#}` decimal, `{!NAME}` a special; of several templates the first that fits counts. */
const page = ['sp gen {mmu_valid_gen#} gfn {gfn} {!role} root {root_count#} {!sync}'];
const pagePlugin = '{!plugin-role} root {root_count#} {!sync}';
const templates: Readonly<Record<string, readonly string[]>> = {
  kvm_mmu_get_page: [...page.map((text) => `${text} {!created}`), `{!created} sp gfn {gfn} ${pagePlugin}`],
  kvm_mmu_sync_page: [...page, pagePlugin],
  kvm_mmu_unsync_page: [...page, pagePlugin],
  kvm_mmu_prepare_zap_page: [...page, pagePlugin],
  kvm_mmu_zap_all_fast: ['kvm-mmu-valid-gen {mmu_valid_gen#} used_pages {mmu_used_pages}'],
  kvm_mmu_set_spte: ['gfn {gfn} spte {spte} ({!rwxu}) level {level#} at {sptep}'],
  kvm_mmu_spte_requested: ['gfn {gfn} pfn {pfn} level {level#}'],
  kvm_tdp_mmu_spte_changed: ['as id {as_id#} gfn {gfn} level {level#} old_spte {old_spte} new_spte {new_spte}'],
  kvm_mmu_split_huge_page: ['gfn {gfn} spte {spte} level {level#} errno {errno#}'],
  fast_page_fault: [
    'vcpu {vcpu_id#} gva {cr2_or_gpa} error_code {!flags} sptep {!sptep} old {old_spte} new {new_spte} spurious {spurious#} fixed {fixed#}',
  ],
  mark_mmio_spte: ['sptep:{!sptep} gfn {gfn} access {access} gen {gen}'],
  check_mmio_spte: ['spte {spte} kvm_gen {kvm_gen} spte-gen {spte_gen}'],
  handle_mmio_page_fault: ['addr:{addr} gfn {gfn} access {access}'],
  kvm_mmu_pagetable_walk: ['addr {addr} pferr {pferr}'],
  kvm_mmu_paging_element: ['pte {pte} level {level#}'],
  kvm_mmu_set_accessed_bit: ['gpa {gpa}'],
  kvm_mmu_set_dirty_bit: ['gpa {gpa}'],
  kvm_mmu_walker_error: ['pferr {pferr}'],
  kvm_page_fault: [
    'vcpu {vcpu_id#} rip {guest_rip} address {fault_address} error_code {error_code}',
    'address {fault_address} error_code {error_code}',
  ],
  kvm_entry: [
    'vcpu {vcpu_id#}, rip {rip} intr_info {intr_info} error_code {error_code}{!immediate}',
    'vcpu {vcpu_id#}, rip {rip}{!perhaps-immediate}',
    'vcpu {vcpu_id#} rip {rip}',
    'vcpu {vcpu_id#}',
  ],
  kvm_exit: [
    'vcpu {vcpu_id#} reason {!reason} rip {guest_rip} info1 {info1} info2 {info2} intr_info {intr_info} error_code {error_code} requests {requests}',
    'vcpu {vcpu_id#} reason {!reason} rip {guest_rip} info1 {info1} info2 {info2} intr_info {intr_info} error_code {error_code}',
    'reason {!reason} rip {guest_rip} info {info1} {info2}',
    'reason {!reason} rip {guest_rip}{!function} info {info1} {info2}',
    'reason {!reason} rip {guest_rip}',
  ],
  kvm_inj_exception: ['{!exception}'],
  kvm_mmio: ['mmio {!mmio} len {len#} gpa {gpa} val {val}'],
  kvm_rmp_fault: [
    'vcpu {vcpu_id#} gpa {gpa} pfn {pfn} error_code {error_code} rmp_level {rmp_level#} psmash_ret {psmash_ret#}',
  ],
  kvm_vm_set_mem_attributes: ['{start} -- {end} [{attr}]'],
  kvm_unmap_hva_range: ['mmu notifier unmap range: {start} -- {end}'],
  kvm_age_hva: ['mmu notifier age hva: {start} -- {end}'],
  kvm_set_spte_hva: ['mmu notifier set pte hva: {hva}'],
};

// A template is compiled to steps of three words, which one loop executes: an operation and its operands.
const LITERAL = 0; // where its bytes begin in #pool and where they end
const HEX = 1; // field
const DECIMAL = 2; // field
const SPECIAL = 3; // index into specials

const pool: number[] = [];
const specials: Op[] = [];

function compile(kind: number, template: string): Int32Array {
  return Int32Array.from(
    template
      .split(/(\{[^}]*\})/)
      .flatMap((part): [op: number, first: number, second: number][] => {
        const hole = /^\{(!?)([\w-]+)(#?)\}$/.exec(part);
        if (!hole) return part ? [[LITERAL, pool.length, pool.push(...latin(part))]] : [];
        const [, isSpecial, name, decimal] = hole;
        if (isSpecial) return [[SPECIAL, specials.push(special(kind, name!)) - 1, 0]];
        const field = fieldIndex(kind, name!);
        if (field < 0) throw new RangeError(`${TRACEPOINTS[kind]!.name} has no field ${name}`);
        return [[decimal ? DECIMAL : HEX, field, 0]];
      })
      .flat(),
  );
}

const compiled = TRACEPOINTS.map(({ kind, name }) => templates[name]!.map((template) => compile(kind, template)));
const literals = Uint8Array.from(pool);

// -------------------------------------------------------------------------------------------------------------- reading

const FAILED = latin('[FAILED TO PARSE] ');
const EQUALS = 0x3d;
/** Of a role that stands there as a number, all but bit 4, of which only the kernel's format tells what it means. */
const ROLE_AS_NUMBER = 0xffffffef;
const fieldNames = TRACEPOINTS.map(({ kind }) => new Names((name) => fieldIndex(kind, name)));

/** `name=value …`, as libtraceevent prints what it has no other words for: hexadecimal with 0x, else decimal. */
function readPairs(kind: number, values: TextValues): boolean {
  const names = fieldNames[kind]!;
  const roleField = fieldIndex(kind, 'role');
  for (values.spaces(); values.at < values.end; values.spaces()) {
    const from = values.at;
    while (values.at < values.end && values.bytes[values.at] !== EQUALS && !isSpace(values.bytes[values.at]!))
      values.at++;
    if (values.bytes[values.at] !== EQUALS || values.at >= values.end) return false;
    const field = names.find(values.bytes, from, values.at);
    values.at++;
    values.spaces();
    const hexadecimal = values.bytes[values.at] === 0x30 && ((values.bytes[values.at + 1] ?? 0) | 0x20) === 0x78;
    if (field >= 0) {
      if (!(hexadecimal ? values.hex() : values.decimal())) return false;
      values.set(field, values.lo, values.hi);
      if (field === roleField) values.roleKnown = ROLE_AS_NUMBER >>> 0;
    }
    while (values.at < values.end && !isSpace(values.bytes[values.at]!)) values.at++;
  }
  return values.known !== 0;
}

function looksLikePairs(values: TextValues): boolean {
  for (let at = values.at; at < values.end; at++) {
    const byte = values.bytes[at]!;
    if (byte === EQUALS) return at > values.at;
    if (isSpace(byte)) return false;
  }
  return false;
}

/** Reads the text of an event of a kind into `values`; false when it is none that is known. */
export function readEventText(kind: number, values: TextValues): boolean {
  values.begin();
  values.spaces();
  if (values.literal(FAILED) || looksLikePairs(values)) return readPairs(kind, values);
  const start = values.at;
  for (const steps of compiled[kind]!) {
    values.begin();
    values.at = start;
    if (follow(steps, values)) return true;
  }
  return false;
}

/** Reads what a template says, from `values.at` on; false where the text is another. */
function follow(steps: Int32Array, values: TextValues): boolean {
  const { bytes, end } = values;
  for (let step = 0; step < steps.length; step += 3) {
    const operand = steps[step + 1]!;
    switch (steps[step]) {
      case LITERAL: {
        const behind = steps[step + 2]!;
        let { at } = values;
        for (let i = operand; i < behind; i++) {
          const byte = literals[i]!;
          if (byte === SPACE) while (at < end && isSpace(bytes[at]!)) at++;
          else if (at < end && bytes[at] === byte) at++;
          else return false;
        }
        values.at = at;
        break;
      }
      case HEX:
        if (!values.hex()) return false;
        values.set(operand, values.lo, values.hi);
        break;
      case DECIMAL:
        if (!values.decimal()) return false;
        values.set(operand, values.lo, values.hi);
        break;
      default:
        if (!specials[operand]!(values)) return false;
    }
  }
  return true;
}
