import { rightsWords, rwx } from '../../engine/formats/decode.ts';
import { formatSize, frameToAddress, hex, hexWords } from '../../engine/memory/words.ts';
import { Output } from './output.ts';
import type { Rows } from './rows.ts';

/** Writes the current row. */
export type RowPrinter = (out: Output, row: Rows) => void;

const encode = Output.encode;
const HEX = encode('0x');
const SPACE_HEX = encode(' 0x');

/** Ends of text rows that come again and again: size, rights and flags, by all that decides them. */
const endings = new WeakMap<object, Map<number, Uint8Array>>();

export const printText: RowPrinter = (out, row) => {
  out.bytes(HEX);
  out.frame(row.frame);
  out.bytes(SPACE_HEX);
  out.frame(row.target);
  out.bytes(ending(row));
};

function ending(row: Rows): Uint8Array {
  const { format } = row.stage.tree;
  const { level, lo, hi, rights, span } = row;
  if (level === 0 || span !== format.span[level] || row.repeated !== 0) return encode(endingWords(row));
  let known = endings.get(format);
  if (!known) {
    known = new Map();
    endings.set(format, known);
  }
  // Beside the address an entry has few bits that tell: 12 below and 12 above.
  const slot = 2 * level + 1;
  const below = lo & ~format.anyAddressLo[slot]! & 0x1fff;
  const above = ((hi & ~format.addressHi[slot]!) >>> 18) & 0x3fff;
  const key = ((above * 2 ** 13 + below) * 64 + rights) * 8 + level;
  if (format.isMalformed(level, lo, hi)) return encode(endingWords(row));
  let bytes = known.get(key);
  if (bytes === undefined) {
    bytes = encode(endingWords(row));
    known.set(key, bytes);
  }
  return bytes;
}

function endingWords({ stage, span, repeated, rights, level, lo, hi }: Rows): string {
  const { format } = stage.tree;
  const size = ` ${formatSize(span * 4096).padStart(6)} ${rightsWords(format, rights)}`;
  if (level === 0) return size;
  const { present } = format.spec.roles;
  const marks = format.spec.leaf.fields;
  const isSet = (bit: number): boolean => ((bit < 32 ? lo >>> bit : hi >>> (bit - 32)) & 1) === 1;
  const flags = format
    .fields(level, 'leaf')
    .filter(({ bits: [high, low], withholds, ignored }) => high === low && !withholds && !ignored && isSet(low))
    .map(({ name }) => name)
    .filter((name) => !present.includes(name) && !marks.includes(name))
    .reverse();
  const malformed = format.isMalformed(level, lo, hi) ? ['malformed'] : [];
  const again = repeated === 0 ? '' : `, one page of ${formatSize(repeated * 4096)} again and again`;
  return `${size}  ${[format.level(level).entry, ...flags, ...malformed].join(' ')}${again}`;
}

export const printJson: RowPrinter = (out, { stage, frame, target, span, repeated, rights, level, lo, hi }) => {
  const { format } = stage.tree;
  const leaf = level === 0 ? {} : { level: format.number(level), entry: hexWords(lo, hi) };
  out.text(
    JSON.stringify({
      input: hex(frameToAddress(frame)),
      output: hex(frameToAddress(target)),
      size: span * 4096,
      ...(repeated === 0 ? {} : { repeated: repeated * 4096 }),
      rights: rightsWords(format, rights),
      supervisor: rwx(rights),
      user: rwx(rights >>> 3),
      ...leaf,
      register: stage.register,
    }),
  );
};

/** Bits 8:1 of an entry from the highest down, as QEMU names them, after NX. */
const QEMU_NAMES = 'GPDACTUW';
const QEMU_FLAGS = Array.from({ length: 512 }, (_, index) => {
  const noExecute = index >= 256 ? ' X' : ' -';
  return encode(noExecute + [...QEMU_NAMES].map((name, at) => ((index >> (7 - at)) & 1 ? name : '-')).join(''));
});
const COLON = encode(': ');

/** A row of QEMU's `info tlb` (monitor, x86). */
export const printQemu: RowPrinter = (out, { stage, frame, target, level, lo, hi }) => {
  const { name } = stage.tree.format.spec;
  // A 4K entry has its PAT bit where a large one has PS: QEMU leaves it out.
  const bits = (lo >>> 1) & (level > 1 ? 0xff : 0xff & ~0x40);
  const noExecute = (hi & 0x8000_0000) !== 0;
  out.frame(frame);
  out.bytes(COLON);
  // Of 4M pages QEMU shows the lower 4G; in PAE paging it leaves the entry's NX bit in the address.
  const shown = name === 'x86-32' ? target % 2 ** 20 : target;
  out.frame(name === 'pae' && noExecute ? shown + 2 ** 51 : shown);
  out.bytes(QEMU_FLAGS[bits | (noExecute ? 256 : 0)]!);
};
