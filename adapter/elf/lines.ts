import { ElfError, NameBudget, Reader } from './reader.ts';

/** Instructions from `from` to before `to` come from a line. */
export interface LineRow {
  readonly from: bigint;
  readonly to: bigint;
  readonly file: string;
  readonly line: number;
  /** A good place for a breakpoint. */
  readonly isStatement: boolean;
}

interface Names {
  readonly sections: LineSections;
  readonly budget: NameBudget;
}

export interface LineSections {
  readonly line: Uint8Array;
  readonly lineStrings: Uint8Array;
  readonly strings: Uint8Array;
}

/** Line programs are made for 64-bit addresses; what a hostile one may claim is bounded. */
const MOST_ROWS = 4_000_000;

const DW_LNCT_path = 1;
const DW_LNCT_directory_index = 2;

/**
 * The rows of `.debug_line` (DWARF 2 to 5, section 6.2). Relative paths are left as they are but for the compilation
 * directory, which DWARF 5 has in the section itself.
 * @throws ElfError
 */
export function readLines(sections: LineSections): LineRow[] {
  const rows: LineRow[] = [];
  const names = { sections, budget: new NameBudget() };
  for (let at = 0; at < sections.line.length; ) {
    const header = new Reader(sections.line, '.debug_line', at);
    const short = header.u32();
    const offsetSize = short === 0xffffffff ? 8 : 4;
    const length = offsetSize === 8 ? header.word(8) : short;
    const end = header.at + length;
    if (end > sections.line.length) throw new ElfError(`.debug_line: the unit at ${at} goes beyond the section`);
    readUnit(names, new Reader(sections.line, '.debug_line', header.at, end), offsetSize, rows);
    at = end;
  }
  return rows;
}

function readUnit(names: Names, reader: Reader, offsetSize: 4 | 8, rows: LineRow[]): void {
  const version = reader.u16();
  if (version < 2 || version > 5) throw new ElfError(`.debug_line: version ${version}; 2 to 5 are understood`);
  if (version === 5) {
    const addressSize = reader.u8();
    if (addressSize !== 8) throw new ElfError(`.debug_line: addresses of ${addressSize} bytes, not 8`);
    reader.skip(1);
  }
  const headerLength = reader.word(offsetSize);
  const program = reader.at + headerLength;
  const minimum = reader.u8();
  if (version >= 4) reader.skip(1);
  const defaultIsStatement = reader.u8() !== 0;
  const lineBase = reader.i8();
  const lineRange = reader.u8();
  const opcodeBase = reader.u8();
  if (lineRange === 0) throw new ElfError('.debug_line: line_range is 0');
  const lengths = Array.from({ length: Math.max(0, opcodeBase - 1) }, () => reader.u8());
  const files = version === 5 ? filesOf5(names, reader, offsetSize) : filesOf4(names, reader);
  reader.at = program;

  let address = 0n;
  let file = 1;
  let line = 1;
  let isStatement = defaultIsStatement;
  let last: { address: bigint; file: number; line: number; isStatement: boolean } | undefined;
  const emit = (ends: boolean): void => {
    // Several rows may stand at one address: a good place is one if any of them says so.
    const again = last?.address === address && last.file === file && last.line === line && last.isStatement;
    if (last && address > last.address) {
      if (rows.length >= MOST_ROWS) throw new ElfError(`.debug_line has more than ${MOST_ROWS} rows`);
      rows.push({
        from: last.address,
        to: address,
        file: files[last.file] ?? '',
        line: last.line,
        isStatement: last.isStatement,
      });
    }
    last = ends ? undefined : { address, file, line, isStatement: isStatement || again };
  };
  const advance = (operations: number): void => {
    address = BigInt.asUintN(64, address + BigInt(operations) * BigInt(minimum));
  };
  while (reader.more) {
    const opcode = reader.u8();
    if (opcode >= opcodeBase) {
      const adjusted = opcode - opcodeBase;
      advance(Math.floor(adjusted / lineRange));
      line += lineBase + (adjusted % lineRange);
      emit(false);
    } else if (opcode === 0) {
      const length = reader.uleb();
      const next = reader.at + length;
      const extended = length === 0 ? 0 : reader.u8();
      if (extended === 1) {
        emit(true);
        address = 0n;
        file = 1;
        line = 1;
        isStatement = defaultIsStatement;
      } else if (extended === 2) address = reader.u64();
      reader.at = next;
    } else {
      switch (opcode) {
        case 1:
          emit(false);
          break;
        case 2:
          advance(reader.uleb());
          break;
        case 3:
          line += reader.sleb();
          break;
        case 4:
          file = reader.uleb();
          break;
        case 6:
          isStatement = !isStatement;
          break;
        case 8:
          advance(Math.floor((255 - opcodeBase) / lineRange));
          break;
        case 9:
          address = BigInt.asUintN(64, address + BigInt(reader.u16()));
          break;
        default:
          // Of the rest only the operands matter, and how many there are is written.
          for (let count = lengths[opcode - 1] ?? 0; count > 0; count--) reader.uleb();
      }
    }
  }
}

function join({ budget }: Names, directory: string | undefined, name: string): string {
  if (name.startsWith('/') || !directory) return name;
  budget.take(directory.length);
  return `${directory}/${name}`;
}

/** Up to DWARF 4: lists that an empty name ends; files are numbered from 1. */
function filesOf4(names: Names, reader: Reader): string[] {
  const text = (): string => reader.text(names.budget);
  const directories: string[] = [''];
  for (let name = text(); name !== ''; name = text()) directories.push(name);
  const files: string[] = [''];
  for (let name = text(); name !== ''; name = text()) {
    files.push(join(names, directories[reader.uleb()], name));
    reader.uleb();
    reader.uleb();
  }
  return files;
}

/** DWARF 5: lists whose form is described; directory 0 is the compilation's, which the others are relative to. */
function filesOf5(names: Names, reader: Reader, offsetSize: 4 | 8): string[] {
  const directories = entries(names, reader, offsetSize).map(({ path }) => path);
  const absolute = directories.map((path) => join(names, directories[0], path));
  return entries(names, reader, offsetSize).map(({ path, directory }) => join(names, absolute[directory], path));
}

function entries(names: Names, reader: Reader, offsetSize: 4 | 8): { path: string; directory: number }[] {
  const formats = Array.from({ length: reader.u8() }, () => ({ content: reader.uleb(), form: reader.uleb() }));
  const count = reader.uleb();
  // Each form takes a byte at least.
  const left = reader.end - reader.at;
  if (count * formats.length > left || (count > 0 && formats.length === 0))
    throw new ElfError(`.debug_line claims ${count} files in ${left} bytes`);
  return Array.from({ length: count }, () => {
    let path = '';
    let directory = 0;
    for (const { content, form } of formats) {
      const value = formValue(names, reader, form, offsetSize);
      if (content === DW_LNCT_path) path = `${value}`;
      else if (content === DW_LNCT_directory_index) directory = Number(value);
    }
    return { path, directory };
  });
}

function formValue(names: Names, reader: Reader, form: number, offsetSize: 4 | 8): string | number {
  const { sections, budget } = names;
  switch (form) {
    case 0x08:
      return reader.text(budget);
    case 0x1f:
      return new Reader(sections.lineStrings, '.debug_line_str', reader.word(offsetSize)).text(budget);
    case 0x0e:
      return new Reader(sections.strings, '.debug_str', reader.word(offsetSize)).text(budget);
    case 0x0b:
      return reader.u8();
    case 0x05:
      return reader.u16();
    case 0x06:
      return reader.u32();
    case 0x07:
      return Number(reader.u64());
    case 0x0f:
      return reader.uleb();
    case 0x1e:
      reader.skip(16);
      return 0;
    case 0x09:
      reader.skip(reader.uleb());
      return 0;
    default:
      throw new ElfError(
        `.debug_line describes files in a form (0x${form.toString(16)}) that DWARF 5 does not allow there`,
      );
  }
}
