import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { Run } from '../engine/run.ts';
import { formatText } from './editor/format.ts';
import { parseExpression, parseScenario } from './index.ts';
import type { MmuLexer } from './lexer.ts';
import { createParserServices } from './module.ts';

const folder = 'examples';
const examples = readdirSync(folder)
  .filter((name) => name.endsWith('.mmu'))
  .map((name) => ({ name, text: readFileSync(`${folder}/${name}`, 'utf8') }));

const lexer = createParserServices().parser.Lexer as MmuLexer;
function tokensWithComments(text: string) {
  const { tokens, hidden } = lexer.tokenizeWithComments(text);
  return [...tokens, ...hidden].sort((a, b) => a.startOffset - b.startOffset);
}
const format = (text: string): string => formatText(text, tokensWithComments(text));
const images = (text: string): string[] => tokensWithComments(text).map(({ image }) => image.trimEnd());
const withoutSpans = (value: unknown): string =>
  JSON.stringify(value, (key, item) =>
    key === 'span' || key === 'text' ? undefined : typeof item === 'bigint' ? `${item}n` : item,
  );

test('there are examples', () => assert.ok(examples.length >= 6, examples.map(({ name }) => name).join(' ')));

for (const { name, text } of examples) {
  test(`${name} is a scenario without errors, laid out as the formatter would`, () => {
    const { diagnostics } = parseScenario(text);
    assert.deepEqual(
      diagnostics.filter(({ severity }) => severity === 'error'),
      [],
    );
    assert.equal(format(text), text);
  });
  // The one that faults a gigabyte in takes many seconds.
  test(`${name} runs, and what it expects holds`, { skip: name === 'populate.mmu' && 'long' }, () => {
    const run = new Run(parseScenario(text).program!);
    assert.equal(run.runToEnd(10_000_000), true);
    assert.equal(run.stuck(), undefined);
    assert.deepEqual(run.machine.small.failures, []);
  });
}

test('the listings in the README are scenarios', () => {
  const parts = readFileSync('scenario/README.md', 'utf8').split('```');
  const listings = parts.filter((_, index) => index % 2 === 1);
  assert.equal(listings.length, 2);
  for (const listing of listings) assert.deepEqual(parseScenario(listing).diagnostics, []);
});

const words = [...new Set(examples.flatMap(({ text }) => images(text)))];
const soup = fc.array(fc.oneof(fc.constantFrom(...words), fc.constantFrom('\n', '{', '}', '$', '0x', '-', '(')), {
  maxLength: 60,
});
const mutant = fc
  .tuple(
    fc.constantFrom(...examples.map(({ text }) => text)),
    fc.array(fc.tuple(fc.nat(), fc.nat({ max: 12 }), fc.oneof(fc.constantFrom(...words), fc.string())), {
      maxLength: 6,
    }),
  )
  .map(([text, edits]) =>
    edits.reduce((before, [at, length, insert]) => {
      const start = at % (before.length + 1);
      return before.slice(0, start) + insert + before.slice(start + length);
    }, text),
  );

const anyText = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 200 }),
  soup.map((list) => list.join(' ')),
  mutant,
);

test('any text gives a program or an error, never an exception', () => {
  fc.assert(
    fc.property(anyText, (text) => {
      const { program, diagnostics } = parseScenario(text);
      assert.equal(
        program === undefined,
        diagnostics.some(({ severity }) => severity === 'error'),
      );
      for (const { span, message } of diagnostics) {
        assert.ok(message.length > 0);
        assert.ok(span.line >= 1 && span.column >= 1, message);
        assert.ok(span.endLine > span.line || (span.endLine === span.line && span.endColumn >= span.column), message);
      }
    }),
    { numRuns: 400 },
  );
});

test('any text is an expression or says why not', () => {
  fc.assert(
    fc.property(anyText, (text) => {
      const { expression, error } = parseExpression(text);
      assert.equal(expression === undefined, error !== undefined);
    }),
    { numRuns: 400 },
  );
});

test('formatting keeps every word and comment, and a second time changes nothing', () => {
  const blank = fc.constantFrom('', ' ', '  ', '\n', '\n\n\n', '\t');
  const spaced = fc
    .tuple(fc.constantFrom(...examples.map(({ text }) => text)), fc.array(blank, { minLength: 1, maxLength: 50 }))
    .map(([text, blanks]) => {
      let count = 0;
      // Only where a space stands already, and never within a comment.
      return text
        .split('\n')
        .map((line) => {
          const [code, ...comment] = line.split('#');
          const wider = code!.replace(/(?<=\S) (?=\S)/g, () => {
            const more = blanks[count++ % blanks.length]!;
            return more.includes('\n') ? ' ' : ` ${more}`;
          });
          return [wider, ...comment].join('#') + (comment.length === 0 ? (blanks[count % blanks.length] ?? '') : '');
        })
        .join('\n');
    });
  fc.assert(
    fc.property(spaced, (text) => {
      const once = format(text);
      assert.deepEqual(images(once), images(text));
      assert.equal(format(once), once);
      assert.equal(withoutSpans(parseScenario(once).program), withoutSpans(parseScenario(text).program));
    }),
    { numRuns: 60 },
  );
});

const DEEP: Readonly<Record<string, string>> = {
  parentheses: `expect ${'('.repeat(100_000)}`,
  brackets: `expect ${'a['.repeat(100_000)}`,
  braces: '{'.repeat(100_000),
  loops: `vcpu 0 { ${'loop { '.repeat(100_000)}`,
  signs: `expect ${'-'.repeat(100_000)}1`,
  'signs in parentheses': `expect ${'-('.repeat(100_000)}1`,
  sums: `expect 1${' + 1'.repeat(100_000)}`,
  digits: `expect ${'9'.repeat(100_000)}`,
  'closing braces': '}'.repeat(100_000),
  words: 'guest '.repeat(10_000),
};
for (const [what, text] of Object.entries(DEEP))
  test(`${text.length} characters of ${what} are an error and no overflow`, () => {
    const { program, diagnostics } = parseScenario(text);
    assert.equal(program, undefined);
    assert.ok(diagnostics.some(({ severity }) => severity === 'error'));
  });

test('the deepest text that is allowed fits on the stack', () => {
  for (const text of [
    `expect ${'('.repeat(32)}1${')'.repeat(32)} == 1`,
    `expect ${'-('.repeat(16)}1${')'.repeat(16)} == 1`,
    `vcpu 0 { ${'repeat 1 { '.repeat(31)}read 0${' }'.repeat(31)} }`,
    `expect 1${' + 1'.repeat(499)} > 0`,
  ])
    assert.deepEqual(
      parseScenario(text).diagnostics.filter(({ severity }) => severity === 'error'),
      [],
      text.slice(0, 40),
    );
});

test('a line more costs as much at the end of a long file as at its start', () => {
  const lines = (count: number): string => `vcpu 0 {\n${'  write 0x400000 + 4 * 4K # a page\n'.repeat(count)}}\n`;
  const time = (text: string): number => {
    const start = performance.now();
    assert.ok(parseScenario(text).program);
    return performance.now() - start;
  };
  time(lines(5_000));
  const short = Math.min(time(lines(10_000)), time(lines(10_000)));
  const long = time(lines(100_000));
  assert.ok(long < 40 * short, `10,000 lines: ${short} ms; 100,000 lines: ${long} ms`);
});
