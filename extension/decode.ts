import * as vscode from 'vscode';
import { FORMATS } from '../engine/formats/all.ts';
import { Format } from '../engine/formats/compile.ts';
import { decodeEntry } from '../engine/formats/decode.ts';
import { formatSize, highWord, lowWord } from '../engine/memory/words.ts';
import { spteFormat, spteNote } from '../engine/tdp/spte.ts';
import { addressAt } from './operands.ts';

/** `Decode entry…`: says what any number means as a table entry, with or without a session. */
export function registerDecode(context: vscode.ExtensionContext): void {
  context.subscriptions.push(vscode.commands.registerCommand('kvm-mmu.decodeEntry', decode));
}

function parse(text: string): bigint | undefined {
  const plain = text.trim().replaceAll('_', '');
  if (!/^(0x[0-9a-f]+|\d+)$/i.test(plain)) return undefined;
  const value = BigInt(plain);
  return value < 1n << 64n ? value : undefined;
}

function numberAtCursor(): string | undefined {
  const editor = vscode.window.activeTextEditor;
  if (!editor) return undefined;
  const selected = editor.document.getText(editor.selection);
  if (parse(selected) !== undefined) return selected;
  const { line, character } = editor.selection.active;
  return addressAt(editor.document.lineAt(line).text, character, '')?.text.replace(/^.*:/, '');
}

async function decode(): Promise<void> {
  const prefilled = numberAtCursor();
  const written = await vscode.window.showInputBox({
    title: 'Decode a page-table entry',
    prompt: 'A 64-bit number, such as 0x8000000000200163',
    ...(prefilled === undefined ? {} : { value: prefilled }),
    validateInput: (text) => (parse(text) === undefined ? 'Not a 64-bit number' : undefined),
  });
  const value = written === undefined ? undefined : parse(written);
  if (value === undefined) return;
  const choices = [...FORMATS.values()].flatMap((spec) => {
    if (spec.entryBytes === 4 && value > 0xffff_ffffn) return [];
    const features = new Set(['nx', '1g-pages', 'execute-only', 'pse', 'svpbmt'] as const);
    const format = new Format(spec, { maxPhyAddr: spec.physicalBits?.[1] ?? 52, features });
    return [...spec.levels]
      .sort((a, b) => a.level - b.level)
      .map(({ level }) => {
        const entry = decodeEntry(format, level, lowWord(value), highWord(value));
        const note = !/^(ept|npt)/.test(spec.name)
          ? undefined
          : spteNote(spteFormat(format), lowWord(value), highWord(value));
        const size = entry.size ? ` ${formatSize(entry.size)}` : '';
        const what =
          entry.state === 'malformed'
            ? `refused: ${entry.problems.join(', ')}`
            : `${entry.state}${entry.state === 'absent' ? '' : ` ${entry.rights} → ${entry.address}${size}`}${entry.problems.map((problem) => `, ${problem}`).join('')}`;
        return {
          label: `${spec.title}: ${entry.name} (level ${format.number(level)})`,
          description: note ?? what,
          entry,
        };
      });
  });
  const chosen = await vscode.window.showQuickPick(choices, {
    title: `0x${value.toString(16)} as …`,
    matchOnDescription: true,
    placeHolder: 'Choose format and level to see every field',
  });
  if (!chosen) return;
  const { entry } = chosen;
  await vscode.window.showQuickPick(
    entry.fields.map((field) => ({
      label: `${field.name}  ${field.words}`,
      description: `bits ${field.bits[0]}${field.bits[0] === field.bits[1] ? '' : `:${field.bits[1]}`}`,
      detail: field.meaning,
    })),
    {
      title: `${chosen.label} ${entry.value}: ${chosen.description}`,
      placeHolder: entry.problems.join(', ') || 'Fields, highest bit first',
    },
  );
}
