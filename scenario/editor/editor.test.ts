import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseHelper } from 'langium/test';
import type { CompletionItem } from 'vscode-languageserver-types';
import { parseScenario } from '../index.ts';
import { createEditorServices } from './module.ts';

const { mmu } = createEditorServices();
const parse = parseHelper(mmu);

/** A document and the place in it that `|` marks. */
async function open(marked: string) {
  const offset = marked.indexOf('|');
  const text = offset < 0 ? marked : marked.slice(0, offset) + marked.slice(offset + 1);
  const document = await parse(text, { validation: true });
  const { textDocument } = document;
  const params = { textDocument: { uri: textDocument.uri }, position: textDocument.positionAt(Math.max(0, offset)) };
  return { document, text, params };
}

async function completions(marked: string): Promise<CompletionItem[]> {
  const { document, params } = await open(marked);
  return (await mmu.lsp.CompletionProvider!.getCompletion(document, params))!.items;
}
const labels = async (marked: string): Promise<string[]> => (await completions(marked)).map(({ label }) => label);

const TEXT = `machine x86-64 {
  memory 0 +64M
}
guest kernel {
  map 0x400000 -> 0x200000 2M rwx
}
vcpu 0 in kernel {
  cr3 = kernel
  repeat 3 as i {
    repeat 3 as i { read i }
    read 0x400000 + i * 4K
  }
}
`;

const at = (marker: string, by = 0): string => {
  const offset = TEXT.indexOf(marker);
  assert.ok(offset >= 0, marker);
  return `${TEXT.slice(0, offset + by)}|${TEXT.slice(offset + by)}`;
};

test('a block offers what it can hold', async () => {
  assert.deepEqual(await labels('|'), ['machine', 'guest', 'nested', 'vcpu', 'host', 'expect']);
  const machine = ['memory', 'second-stage', 'maxphyaddr', 'cpu', 'policy', 'vm', 'private', 'launch', 'memory-fault'];
  assert.deepEqual(await labels('machine {\n  |\n}'), machine);
  assert.deepEqual(await labels('guest k {\n  m|\n}'), ['map', 'entry', 'tables']);
  const vcpu = await labels('vcpu 0 {\n  repeat 2 {\n    |\n  }\n}');
  assert.ok(vcpu.includes('write') && vcpu.includes('cr0') && !vcpu.includes('migrate'));
  assert.ok(vcpu.includes('rmpadjust') && vcpu.includes('vmpl') && !vcpu.includes('rmpupdate'));
  const host = await labels('host h {\n  |');
  assert.ok(host.includes('migrate') && !host.includes('write') && !host.includes('cr0'));
  assert.ok(host.includes('rmpupdate') && !host.includes('rmpadjust'));
});

test('statements about private memory offer what is left of them', async () => {
  assert.deepEqual(await labels('host h {\n  rmpupdate 0x1000 |'), ['2M', 'private', 'shared']);
  assert.deepEqual(await labels('host h {\n  rmpupdate 0x1000 private |'), ['as', 'asid']);
  assert.deepEqual(await labels('host h {\n  rmpupdate 0x1000 private as 0x2000 |'), ['asid']);
  assert.deepEqual(await labels('host h {\n  convert 0x1000 +4K |'), ['private', 'shared']);
  assert.deepEqual(await labels('vcpu 0 {\n  rmpadjust 0x1000 |'), ['2M', 'vmpl']);
  assert.deepEqual(await labels('vcpu 0 {\n  rmpadjust 0x1000 vmpl 2 |'), ['r--', 'rw-', 'r-x', 'rwx', 'off']);
  assert.deepEqual(await labels('vcpu 0 {\n  vmpl |'), []);
  assert.ok((await labels('host h {\n  repeat 2 as page { convert (page * |')).includes('page'));
  // `as` names a variable of a loop alone.
  const names = await labels('host h {\n  rmpupdate 0x1000 private as 0x8000\n  loop {\n    convert (|');
  assert.ok(names.length > 0 && !names.includes('0x8000'));
});

test('a dot offers bits, counters, registers and sizes', async () => {
  assert.deepEqual(await labels('vcpu 0 {\n  cr0.|\n}'), ['pe', 'wp', 'pg']);
  assert.deepEqual(await labels('expect vcpu[0].cr4.s|'), [
    'pse',
    'pae',
    'pge',
    'la57',
    'pcide',
    'smep',
    'smap',
    'pke',
    'cet',
    'pks',
  ]);
  assert.ok((await labels('expect vcpu[0].|')).includes('pkru'));
  const faults = await labels('vcpu 0 { }\nexpect faults.|');
  assert.ok(faults.includes('second') && !faults.includes('hits'));
  assert.deepEqual(await labels('vcpu 0 {\n  read.|'), ['1', '2', '4', '8']);
});

test('names of guests and loop variables are offered where they can stand', async () => {
  const before = 'guest kernel { }\nguest user_space { }\n';
  assert.deepEqual(await labels(`${before}vcpu 0 in |`), ['kernel', 'user_space']);
  const value = await labels(`${before}vcpu 0 {\n  repeat 2 as page {\n    cr3 = |`);
  assert.ok(value.includes('kernel') && value.includes('page') && value.includes('u64'));
  assert.ok(!(await labels(`${before}vcpu 0 {\n  repeat 2 as page { }\n  cr3 = |`)).includes('page'));
});

test('a mapping offers permissions, a comment nothing', async () => {
  assert.ok((await labels('guest k {\n  map 0 -> 0 4K |')).includes('rw-'));
  assert.deepEqual(await labels('vcpu 0 {\n  # read |'), []);
  assert.deepEqual(await labels('machine {\n  second-stage |'), ['tdp', 'shadow']);
  assert.deepEqual(await labels('guest k |'), ['in', '32-bit', 'pae', '4-level', '5-level']);
  assert.deepEqual(await labels('machine {\n  policy |'), [
    'page-split = ',
    'roots = ',
    'quadrant = ',
    'conversion = ',
    'attribute-zap = ',
    'attribute-errors = ',
    'guest-memfd = ',
    'nx-huge-pages = ',
    'tdp-mmu = ',
  ]);
  assert.deepEqual(await labels('machine {\n  policy page-split = |'), ['eager', 'lazy', 'all']);
  assert.deepEqual(await labels('machine {\n  cpu |'), ['1g-pages', 'execute-only', 'l1tf', 'none']);
});

test('each block that completion writes is a scenario', async () => {
  const filled = (item: CompletionItem): string =>
    (item.insertText ?? item.label).replace(/\$\{\d+:([^}]*)\}/g, '$1').replace(/\$\{\d+\|([^,|]*)[^}]*\}/g, '$1');
  const wrap: Record<string, (text: string) => string> = {
    '|': (text) => `${text.startsWith('guest') ? '' : 'guest kernel { }\n'}${text}`,
    'machine {\n|': (text) => `machine {\n${text.startsWith('memory') ? '' : 'memory 0 +64M\n'}${text}\n}`,
    'guest k {\n|': (text) => `guest k {\n${text}\n}`,
    'vcpu 0 {\n|': (text) => `vcpu 0 {\n${text}\n}`,
    'host h {\n|': (text) => `host h {\n${text}\n}`,
  };
  for (const [place, inContext] of Object.entries(wrap))
    for (const item of await completions(place)) {
      if (item.insertTextFormat !== 2) continue;
      const errors = parseScenario(inContext(filled(item))).diagnostics.filter(({ severity }) => severity === 'error');
      assert.deepEqual(errors, [], inContext(filled(item)));
    }
});

test('a completion replaces the word that has been begun', async () => {
  const items = await completions('machine {\n  second-s|');
  const item = items.find(({ label }) => label === 'second-stage')!;
  assert.deepEqual((item.textEdit as { range: unknown }).range, {
    start: { line: 1, character: 2 },
    end: { line: 1, character: 10 },
  });
});

async function hover(marked: string): Promise<string | undefined> {
  const { document, params } = await open(marked);
  const found = await mmu.lsp.HoverProvider!.getHoverContent(document, params);
  return found && (found.contents as { value: string }).value;
}

test('hovers explain numbers, registers, counters, guests and keywords', async () => {
  assert.equal(await hover(at('0x400000', 3)), '`0x40_0000` = `4194304` = `4M`');
  assert.equal(
    await hover('expect 0xffff_8880_0000_0001|'.replace('1|', '|1')),
    '`0xffff_8880_0000_0001` = `18446612682070032385`',
  );
  assert.equal(
    await hover('vcpu 0 { cr0.w|p = 0 }'),
    '**cr0.wp** (bit 16): write protect: the supervisor, too, may not write to read-only pages.',
  );
  assert.equal(
    await hover('expect vcpu[0].cr4.sm|ep'),
    '**cr4.smep** (bit 20): the supervisor may not execute user pages.',
  );
  assert.equal(await hover('expect fau|lts.second == 1'), undefined);
  assert.equal(await hover('expect faults.sec|ond == 1'), '**faults.second**: EPT violations or NPT faults.');
  assert.equal(
    await hover(at('kernel {\n  cr3', 1)),
    '**guest kernel**: page tables with 1 mapping. In an expression: the address of their root.',
  );
  assert.match((await hover(at('repeat', 2)))!, /^\*\*repeat\*\*: /);
  assert.match((await hover('machine { second-st|age tdp ept 4-level }'))!, /^Which tables/);
  assert.equal(await hover('# re|ad'), undefined);
  assert.match((await hover('expect lev|el(0) == 1'))!, /the level at which KVM/);
});

async function definition(marked: string): Promise<string | undefined> {
  const { document, text, params } = await open(marked);
  const [link] = (await mmu.lsp.DefinitionProvider!.getDefinition(document, params)) ?? [];
  return (
    link &&
    `${link.targetSelectionRange.start.line + 1}: ${text.split('\n')[link.targetSelectionRange.start.line]!.trim()}`
  );
}

test('definitions of guests and of the innermost loop variable are found', async () => {
  assert.equal(await definition(at('kernel {\n  cr3', 1)), '4: guest kernel {');
  assert.equal(await definition(at('kernel\n', 1)), '4: guest kernel {');
  assert.equal(await definition(at('i }', 0)), '10: repeat 3 as i { read i }');
  assert.equal(await definition(at('i * 4K', 0)), '9: repeat 3 as i {');
});

test('renaming changes every use and nothing else', async () => {
  async function rename(marked: string, newName: string): Promise<string> {
    const { document, text, params } = await open(marked);
    const edit = await mmu.lsp.RenameProvider!.rename(document, { ...params, newName });
    const edits = Object.values(edit?.changes ?? {}).flat();
    const offset = (place: { line: number; character: number }): number => document.textDocument.offsetAt(place);
    return edits
      .sort((a, b) => offset(b.range.start) - offset(a.range.start))
      .reduce(
        (before, { range, newText }) =>
          before.slice(0, offset(range.start)) + newText + before.slice(offset(range.end)),
        text,
      );
  }
  assert.equal(await rename(at('kernel\n', 1), 'k2'), TEXT.replaceAll('kernel', 'k2'));
  assert.equal(
    await rename(at('i * 4K'), 'page'),
    TEXT.replace('repeat 3 as i {\n', 'repeat 3 as page {\n').replace('+ i *', '+ page *'),
  );
});

test('references of a guest are its definition and its uses', async () => {
  const { document, params } = await open(at('kernel {\n  map', 1));
  const found = await mmu.lsp.ReferencesProvider!.findReferences(document, {
    ...params,
    context: { includeDeclaration: true },
  });
  assert.deepEqual(
    found.map(({ range }) => range.start.line + 1),
    [4, 7, 8],
  );
});

test('the outline lists the blocks, and blocks fold', async () => {
  const { document, params } = await open(TEXT);
  const symbols = await mmu.lsp.DocumentSymbolProvider!.getSymbols(document, params);
  assert.deepEqual(
    symbols.map(({ name, detail }) => [name, detail]),
    [
      ['machine x86-64', undefined],
      ['guest kernel', undefined],
      ['vcpu 0', 'in kernel'],
    ],
  );
  const folds = await mmu.lsp.FoldingRangeProvider!.getFoldingRanges(document, params);
  assert.deepEqual(
    folds.map(({ startLine, endLine }) => [startLine + 1, endLine + 1]).sort(([a], [b]) => a! - b!),
    [
      [1, 2],
      [4, 5],
      [7, 12],
      [9, 11],
    ],
  );
});

test('Debug and Run stand above the machine, or above the first line', async () => {
  const lenses = async (text: string) => {
    const { document, params } = await open(text);
    const found = (await mmu.lsp.CodeLensProvider!.provideCodeLens(document, params))!;
    return found.map(({ range, command }) => [
      range.start.line,
      command!.command,
      command!.arguments![0] === document.uri.toString(),
    ]);
  };
  const commands = (line: number) => [
    [line, 'kvm-mmu.debugScenario', true],
    [line, 'kvm-mmu.runScenario', true],
  ];
  assert.deepEqual(await lenses('# first\n\nmachine { memory 0 +4K }'), commands(2));
  assert.deepEqual(await lenses('vcpu 0 { }'), commands(0));
});

test('the editor shows what parseScenario says', async () => {
  for (const text of [
    'vcpu 0 { zap all }',
    'vcpu 0 in nobody { }',
    'vpcu',
    '(((',
    'vcpu 0 {\n  cr0.wq = 1\n}',
    `expect ${'('.repeat(1000)}`,
  ]) {
    const { document } = await open(text);
    assert.deepEqual(
      document.diagnostics!.map(
        ({ message, range }) => `${range.start.line + 1}:${range.start.character + 1} ${message}`,
      ),
      parseScenario(text).diagnostics.map(({ message, span }) => `${span.line}:${span.column} ${message}`),
    );
  }
});

test('formatting leaves broken text alone', async () => {
  const options = { tabSize: 2, insertSpaces: true };
  const { document, params } = await open('vcpu   0 {');
  assert.deepEqual(await mmu.lsp.Formatter!.formatDocument(document, { ...params, options }), []);
});

test('formatting knows signs, sizes, calls and words with dashes', async () => {
  const { document, params } = await open(
    'machine x86 - 64{\nmemory (1G+0)+ 64M huge 2M\n\n\nsecond-stage tdp ept 4 - level # tables\n}\n' +
      'vcpu 0{\n\nrepeat 2 as i{write.4 4K+i*-1 = - i#one\n}\nexpect!(level( 4K )==~ 1)&&x in 1 .. 2 && vcpu [ 0 ] . cr0 . wp\nmap 0->0+8K 4K rw- user\n}\n',
  );
  const [edit] = await mmu.lsp.Formatter!.formatDocument(document, {
    ...params,
    options: { tabSize: 2, insertSpaces: true },
  });
  assert.equal(
    edit!.newText,
    `machine x86-64 {
  memory (1G + 0) +64M huge 2M

  second-stage tdp ept 4-level # tables
}
vcpu 0 {
  repeat 2 as i { write.4 4K + i * -1 = -i #one
  }
  expect !(level(4K) == ~1) && x in 1..2 && vcpu[0].cr0.wp
  map 0 -> 0 +8K 4K rw- user
}
`,
  );
});
