import type { IToken } from 'chevrotain';
import type { LangiumDocument } from 'langium';
import type { CompletionProvider, LangiumServices } from 'langium/lsp';
import type { CompletionParams } from 'vscode-languageserver-protocol';
import {
  type CompletionItem,
  CompletionItemKind,
  type CompletionList,
  InsertTextFormat,
} from 'vscode-languageserver-types';
import { HAZARD_NAMES } from '../../engine/attributes/hazards.ts';
import { VM_TYPES } from '../../engine/attributes/state.ts';
import { PAGING, REGISTERS } from '../../engine/guest/registers.ts';
import { POLICY_VALUES } from '../../engine/policies.ts';
import { isScenario } from '../generated/ast.ts';
import { FAMILIES, FEATURES, FUNCTIONS, isRegister, registerBits, VALUES } from '../names.ts';
import { BLOCK_WORDS } from '../syntax-errors.ts';
import { SNIPPETS } from './snippets.ts';
import { dottedName, endOf, isComment, tokensOf } from './tokens.ts';
import { BIT_WORDS, KEYWORDS, REGISTER_WORDS, VALUE_WORDS } from './words.ts';

type Block = keyof typeof BLOCK_WORDS;
const BLOCKS: Readonly<Record<string, Block>> = {
  machine: 'Machine',
  guest: 'Guest',
  nested: 'Guest',
  vcpu: 'Vcpu',
  host: 'Host',
};

const ATTRIBUTES = [
  'r--',
  'rw-',
  'r-x',
  'rwx',
  'user',
  'supervisor',
  'global',
  'accessed',
  'dirty',
  'key',
  'private',
  'shared',
];
/** What follows a word at once, where that is a matter of words. */
const FOLLOWERS: Readonly<Record<string, readonly string[]>> = {
  machine: ['x86-64'],
  vm: VM_TYPES,
  'memory-fault': ['convert', 'stop'],
  'guest-memfd': ['2M'],
  never: HAZARD_NAMES,
  private: ['read', 'write'],
  shared: ['read', 'write'],
  'second-stage': ['tdp', 'shadow'],
  tdp: ['ept 4-level', 'npt 4-level', 'ept 5-level', 'npt 5-level'],
  huge: ['2M', '1G'],
  wait: ['until'],
  add: ['slot'],
  delete: ['slot'],
  move: ['slot'],
  log: ['dirty'],
  dirty: ['slot'],
  tables: ['at'],
  zap: ['all'],
  'async-pf': ['off'],
  user: ['read', 'write', 'fetch'],
  supervisor: ['read', 'write', 'fetch'],
  implicit: ['read', 'write', 'fetch'],
};
/** Statements of words and constants: no names to offer in them. */
const CONSTANT = new Set([
  'memory',
  'map',
  'unmap',
  'protect',
  'entry',
  'add',
  'delete',
  'move',
  'log',
  'zap',
  'migrate',
  'swap-out',
  'recover-nx-huge-pages',
  'vm',
  'launch',
  'vmpl',
]);

/**
 * Offers what can come next. It looks at the words before the cursor, since a text that is being written has no tree
 * worth asking.
 */
export class MmuCompletionProvider implements CompletionProvider {
  readonly completionOptions = { triggerCharacters: ['.'] };
  readonly #services: LangiumServices;

  constructor(services: LangiumServices) {
    this.#services = services;
  }

  getCompletion(document: LangiumDocument, params: CompletionParams): CompletionList {
    const { textDocument } = document;
    const offset = textDocument.offsetAt(params.position);
    const all = tokensOf(this.#services, document);
    const comment = all.find((token) => isComment(token) && token.startOffset < offset && offset <= endOf(token));
    if (comment) return { isIncomplete: false, items: [] };
    const before = all.filter((token) => !isComment(token) && token.startOffset < offset);
    const line = textDocument.getText({ start: { line: params.position.line, character: 0 }, end: params.position });
    // The word at the cursor is what gets replaced.
    const partial =
      /(?<![\w-])(second-\w*|read-\w*|x86-\w*|1g-\w*|execute-\w*|page-\w*|nx-[\w-]*|recover-[\w-]*|swap-\w*|async-\w*|send-\w*|memory-\w*|guest-\w*)$|\w*$/.exec(
        line,
      )![0];
    const start = offset - partial.length;
    const tokens = before.filter((token) => token.startOffset < start);
    const replaced = { start: textDocument.positionAt(start), end: params.position };
    const items = this.#offers(document, tokens, params.position.line + 1).map((item): CompletionItem => {
      const newText = item.insertText ?? item.label;
      return { ...item, textEdit: { range: replaced, newText } };
    });
    return { isIncomplete: false, items };
  }

  #offers(document: LangiumDocument, tokens: readonly IToken[], line: number): CompletionItem[] {
    const last = tokens.at(-1);
    if (last?.image === '.') return afterDot(tokens);
    const { block, loops } = enclosing(tokens);
    const onLine = tokens.filter((token) => token.startLine === line);
    const from = onLine.findLastIndex(({ image }) => image === '{' || image === '}') + 1;
    const statement = onLine.slice(from);
    if (last === undefined || statement.length === 0) return beginnings(block);

    const { value } = document.parseResult;
    const guests = isScenario(value) ? value.guests.flatMap(({ name }) => (name ? [name] : [])) : [];
    const [first] = statement as [IToken, ...IToken[]];
    const followers = FOLLOWERS[last.image === 'stage' ? 'second-stage' : last.image];
    if (
      followers &&
      !(last.image === 'dirty' && first.image !== 'log') &&
      !/^(map|protect|convert|rmpupdate)$/.test(first.image)
    )
      return followers.map((word) => keyword(word));
    if (first.image === 'guest' && statement.length === 2)
      return ['in', ...Object.keys(PAGING)].map((word) => keyword(word));
    if (first.image === 'nested' && statement.length >= 2)
      return ['4-level', '5-level', 'no-ad'].map((word) => keyword(word));
    if (last.image === 'enter' || last.image === 'invept') return guests.map(guestItem);
    if (first.image === 'vcpu' && statement.length === 2) return [keyword('in')];
    if (/^(vcpu|guest|map|unmap|protect|entry)$/.test(first.image) && last.image === 'in') return guests.map(guestItem);
    if (first.image === 'cpu') return [...Object.keys(FEATURES), 'none'].map((word) => keyword(word, FEATURES[word]));
    if (first.image === 'policy') {
      const chosen = Object.entries(POLICY_VALUES).find(
        ([name]) =>
          name ===
          statement
            .slice(1, -1)
            .map(({ image }) => image)
            .join(''),
      );
      if (last.image === '=' && chosen) return chosen[1].map((word) => keyword(word));
      return last === first ? Object.keys(POLICY_VALUES).map((word) => keyword(`${word} = `)) : [];
    }
    if (first.image === 'memory') return ['huge', 'read-only', 'slot'].map((word) => keyword(word));
    if ((first.image === 'map' && statement.some(({ image }) => image === '->')) || first.image === 'protect')
      return [...ATTRIBUTES, 'in'].map((word) => keyword(word));
    if (first.image === 'convert' && hasSize(statement)) return ['private', 'shared'].map((word) => keyword(word));
    if (first.image === 'rmpupdate') return followRmpupdate(last.image, statement.length);
    if (first.image === 'rmpadjust' && last.image !== 'rmpadjust' && last.image !== '(')
      return followRmpadjust(statement.map(({ image }) => image));
    if (first.image === 'pvalidate' && statement.length > 1) return ['2M', 'off'].map((word) => keyword(word));
    if (first.image === 'log') return ['on', 'off'].map((word) => keyword(word));
    if (first.image === 'add' && statement.length > 5) return ['huge', 'read-only'].map((word) => keyword(word));
    const constant = CONSTANT.has(first.image) && !statement.some(({ image }) => image === '=');
    const isNameWanted = /^(as|guest|nested|host)$/.test(last.image);
    if (constant || isNameWanted || block === 'Machine' || block === 'Guest') return [];
    return [
      ...names(),
      ...guests.map(guestItem),
      ...loops.map((label) => ({ label, kind: CompletionItemKind.Variable })),
    ];
  }
}

/** Whether a statement has its `+SIZE`. */
const hasSize = (statement: readonly IToken[]): boolean =>
  statement.at(-2)?.image === '+' && statement.at(-1)!.tokenType.name === 'NUMBER';

function followRmpupdate(last: string, length: number): CompletionItem[] {
  const words =
    last === 'private' ? ['as', 'asid'] : length === 2 || length === 3 ? ['2M', 'private', 'shared'] : ['asid'];
  return last === 'rmpupdate' || last === 'as' || last === 'asid' || last === 'shared'
    ? []
    : words.map((word) => keyword(word));
}

function followRmpadjust(images: readonly string[]): CompletionItem[] {
  if (images.at(-1) === 'vmpl') return [];
  const words = images.includes('vmpl') ? ['r--', 'rw-', 'r-x', 'rwx', 'off'] : ['2M', 'vmpl'];
  return words.map((word) => keyword(word));
}

/** The block around the end of a text, and the variables of the loops around it. */
function enclosing(tokens: readonly IToken[]): { block: Block; loops: string[] } {
  const stack: { block: Block; variable?: string }[] = [];
  let header: readonly [block: Block | undefined, variable?: string | undefined] = [undefined];
  let isLoop = false;
  tokens.forEach((token, index) => {
    const { image } = token;
    if (image === '{' || image === '}') isLoop = false;
    if (image === '{') {
      const [block, variable] = header;
      stack.push({ block: block ?? stack.at(-1)?.block ?? 'Scenario', ...(variable ? { variable } : {}) });
      header = [undefined];
    } else if (image === '}') {
      stack.pop();
      header = [undefined];
    } else if (stack.length === 0 && Object.hasOwn(BLOCKS, image) && tokens[index + 1]?.image !== '[')
      header = [BLOCKS[image]];
    else if (image === 'repeat' || image === 'loop') isLoop = true;
    else if (image === 'as' && isLoop) header = [undefined, tokens[index + 1]?.image];
  });
  return {
    block: stack.at(-1)?.block ?? 'Scenario',
    loops: stack.flatMap(({ variable }) => (variable === undefined ? [] : [variable])),
  };
}

function afterDot(tokens: readonly IToken[]): CompletionItem[] {
  const owner = tokens.at(-2);
  if (!owner) return [];
  if (owner.image === ']') return REGISTERS.map(registerItem);
  const name = dottedName(tokens, tokens.length - 2)
    .split('.')
    .at(-1)!;
  if (isRegister(name))
    return registerBits(name).map((bit) => ({
      label: bit,
      kind: CompletionItemKind.Field,
      detail: BIT_WORDS[`${name}.${bit}`] ?? '',
    }));
  if (/^(read|write|fetch)$/.test(name))
    return ['1', '2', '4', '8'].map((size) => ({
      label: size,
      kind: CompletionItemKind.Value,
      detail: `${size} bytes`,
    }));
  return VALUES.filter((value) => value.startsWith(`${name}.`)).map((value) => ({
    label: value.slice(name.length + 1),
    kind: CompletionItemKind.Field,
    detail: VALUE_WORDS[value as keyof typeof VALUE_WORDS],
  }));
}

function beginnings(block: Block): CompletionItem[] {
  const words = BLOCK_WORDS[block].map((word): CompletionItem => {
    const snippet = SNIPPETS[block]?.[word];
    return {
      ...keyword(word),
      ...(snippet
        ? { insertText: snippet, insertTextFormat: InsertTextFormat.Snippet, kind: CompletionItemKind.Snippet }
        : {}),
    };
  });
  return block === 'Vcpu' ? [...words, ...REGISTERS.map(registerItem)] : words;
}

const keyword = (label: string, words: string | undefined = KEYWORDS[label]): CompletionItem => ({
  label,
  kind: CompletionItemKind.Keyword,
  ...(words ? { documentation: { kind: 'markdown', value: words } } : {}),
});

const guestItem = (label: string): CompletionItem => ({ label, kind: CompletionItemKind.Module, detail: 'guest' });

const registerItem = (label: (typeof REGISTERS)[number]): CompletionItem => ({
  label,
  kind: CompletionItemKind.Variable,
  detail: REGISTER_WORDS[label],
});

function names(): CompletionItem[] {
  const values = VALUES.filter((name) => !name.includes('.')).map(
    (label): CompletionItem => ({
      label,
      kind: CompletionItemKind.Variable,
      detail: VALUE_WORDS[label as keyof typeof VALUE_WORDS],
    }),
  );
  const families = [...FAMILIES].map(
    (label): CompletionItem => ({ label, kind: CompletionItemKind.Module, detail: 'counters' }),
  );
  const functions = Object.entries(FUNCTIONS).map(
    ([label, detail]): CompletionItem => ({
      label,
      kind: CompletionItemKind.Function,
      detail,
      insertText: `${label}($1)`,
      insertTextFormat: InsertTextFormat.Snippet,
    }),
  );
  return [...values, ...families, ...REGISTERS.map(registerItem), keyword('vcpu'), ...functions];
}
