import { type LineRow, readLines } from './lines.ts';
import { ElfError, NameBudget, Reader } from './reader.ts';

export interface ElfSymbol {
  readonly name: string;
  readonly address: bigint;
  /** Bytes; 0 where the assembler was not told. */
  readonly size: bigint;
}

export interface Section {
  readonly name: string;
  readonly type: number;
  readonly bytes: Uint8Array;
  readonly link: number;
  /** Where it lies in memory; of no size if it does not. */
  readonly address: bigint;
  readonly size: bigint;
}

const SHT_SYMTAB = 2;
const SHT_NOBITS = 8;
const SHF_ALLOC = 0x2;
const SHF_COMPRESSED = 0x800;
const STT_NOTYPE = 0;
const STT_OBJECT = 1;
const STT_FUNC = 2;

/** The symbols and source lines of a program, by virtual address. */
export class ElfProgram {
  readonly symbols: readonly ElfSymbol[];
  readonly lines: readonly LineRow[];
  /** Why there are no lines although the file has debugging information. */
  readonly problem: string | undefined;
  readonly #byName: ReadonlyMap<string, ElfSymbol>;
  readonly #places: readonly Section[];
  readonly files: readonly string[];
  /** Good places for breakpoints, by file and line. */
  readonly #statements: ReadonlyMap<string, ReadonlyMap<number, readonly LineRow[]>>;

  /** @throws ElfError for what is no ELF64 file or is cut off */
  constructor(file: Uint8Array) {
    const sections = readSections(file);
    this.#places = sections.filter((section) => section.size > 0n);
    this.symbols = readSymbols(sections).sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0));
    this.#byName = new Map([...this.symbols].reverse().map((symbol) => [symbol.name, symbol]));
    const bytesOf = (name: string) => sections.find((section) => section.name === name)?.bytes ?? new Uint8Array();
    let lines: LineRow[] = [];
    try {
      lines = readLines({
        line: bytesOf('.debug_line'),
        lineStrings: bytesOf('.debug_line_str'),
        strings: bytesOf('.debug_str'),
      });
    } catch (error) {
      if (!(error instanceof ElfError)) throw error;
      this.problem = `no source lines: ${error.message}`;
    }
    this.lines = lines.sort((a, b) => (a.from < b.from ? -1 : a.from > b.from ? 1 : 0));
    this.files = [...new Set(this.lines.map((row) => row.file))].filter((file) => file !== '').sort();
    this.#statements = statementsOf(this.lines);
  }

  /** @returns undefined when there is no such symbol */
  address(name: string): bigint | undefined {
    return this.#byName.get(name)?.address;
  }

  /** The symbol that holds an address: the nearest before it; if it does not say how large it is, in the same section. */
  symbolAt(address: bigint): ElfSymbol | undefined {
    const found = this.symbols[lastNotAbove(this.symbols, address, (symbol) => symbol.address)];
    if (!found) return undefined;
    if (found.size > 0n) return address < found.address + found.size ? found : undefined;
    const section = this.#places.find((place) => address >= place.address && address < place.address + place.size);
    return section && found.address >= section.address ? found : undefined;
  }

  /** `name` or `name+0x10`; undefined where no symbol is. */
  nameOf(address: bigint): string | undefined {
    const symbol = this.symbolAt(address);
    if (!symbol) return undefined;
    return symbol.address === address ? symbol.name : `${symbol.name}+0x${(address - symbol.address).toString(16)}`;
  }

  lineAt(address: bigint): LineRow | undefined {
    const found = this.lines[lastNotAbove(this.lines, address, (row) => row.from)];
    return found && address < found.to ? found : undefined;
  }

  /** Lines of a file on which a breakpoint can stand, ascending. */
  breakableLines(file: string): number[] {
    return [...(this.#statements.get(file)?.keys() ?? [])].sort((a, b) => a - b);
  }

  /** Where the code of a line begins: once for each stretch of it. */
  addressesOf(file: string, line: number): bigint[] {
    const rows = this.#statements.get(file)?.get(line) ?? [];
    const ends = new Set(rows.map((row) => row.to));
    return rows.filter((row) => !ends.has(row.from)).map((row) => row.from);
  }
}

function statementsOf(lines: readonly LineRow[]): Map<string, Map<number, LineRow[]>> {
  const files = new Map<string, Map<number, LineRow[]>>();
  for (const row of lines) {
    if (!row.isStatement) continue;
    const rows = files.get(row.file) ?? new Map<number, LineRow[]>();
    files.set(row.file, rows);
    const there = rows.get(row.line);
    if (there) there.push(row);
    else rows.set(row.line, [row]);
  }
  return files;
}

function lastNotAbove<T>(sorted: readonly T[], value: bigint, key: (item: T) => bigint): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (key(sorted[middle]!) <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** @throws ElfError for what is no ELF64 file or is cut off */
export function readSections(file: Uint8Array): Section[] {
  if (file.length < 64 || file[0] !== 0x7f || file[1] !== 0x45 || file[2] !== 0x4c || file[3] !== 0x46)
    throw new ElfError('it is no ELF file');
  if (file[4] !== 2 || file[5] !== 1) throw new ElfError('it is no 64-bit little-endian ELF file');
  const header = new Reader(file, 'the ELF header', 40);
  const table = header.word(8);
  header.at = 58;
  const [entrySize, count, names] = [header.u16(), header.u16(), header.u16()];
  if (count === 0) return [];
  if (entrySize !== 64) throw new ElfError(`its section headers have ${entrySize} bytes, not 64`);
  const raw = Array.from({ length: count }, (_, index) => {
    const at = new Reader(file, 'the section headers', table + index * entrySize);
    const [name, type] = [at.u32(), at.u32()];
    const flags = at.u64();
    const address = at.u64();
    const [offset, size] = [at.word(8), at.word(8)];
    const link = at.u32();
    const there = type !== SHT_NOBITS && type !== 0 && (flags & BigInt(SHF_COMPRESSED)) === 0n;
    const inMemory = (flags & BigInt(SHF_ALLOC)) !== 0n;
    if (there && offset + size > file.length)
      throw new ElfError(`section ${index} goes beyond the end of the file: it is cut off`);
    return {
      name,
      type,
      link,
      bytes: there ? file.subarray(offset, offset + size) : new Uint8Array(),
      address,
      size: inMemory ? BigInt(size) : 0n,
    };
  });
  const strings = raw[names]?.bytes ?? new Uint8Array();
  const budget = new NameBudget();
  return raw.map((section) => ({
    ...section,
    name: section.name < strings.length ? new Reader(strings, 'the section names', section.name).cutText(budget) : '',
  }));
}

function readSymbols(sections: readonly Section[]): ElfSymbol[] {
  const table = sections.find((section) => section.type === SHT_SYMTAB);
  const strings = table && sections[table.link]?.bytes;
  if (!table || !strings) return [];
  const symbols: ElfSymbol[] = [];
  const budget = new NameBudget();
  for (let at = 24; at + 24 <= table.bytes.length; at += 24) {
    const reader = new Reader(table.bytes, '.symtab', at);
    const name = reader.u32();
    const type = reader.u8() % 16;
    reader.skip(1);
    const section = reader.u16();
    const address = reader.u64();
    if (section === 0 || name === 0 || (type !== STT_FUNC && type !== STT_OBJECT && type !== STT_NOTYPE)) continue;
    symbols.push({ name: new Reader(strings, '.strtab', name).cutText(budget), address, size: reader.u64() });
  }
  return symbols;
}
