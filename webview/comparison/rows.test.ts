import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ComparisonAnswer } from '../../engine/queries/answers.ts';
import { comparedRows, modeChanges, tablesWords } from './rows.ts';

const answer: ComparisonAnswer = {
  kind: 'comparison',
  certainty: 'exact',
  subject: 'policy roots',
  columns: ['before', 'today'].map((name) => ({ name, ok: true, notes: [] })),
  rows: [
    { name: 'steps', values: [4000, 1000] },
    { name: 'modes.changed', values: [20, 20] },
    { name: 'roots.freed', values: [20, 0] },
    { name: 'roots.built', values: [null, 1] },
  ],
  tables: [
    {
      vcpu: 0,
      hashes: ['0x1', '0x2'],
      differences: [{ column: 1, lines: [{ address: '0x1000', one: 'nothing', other: 'level 1, rw-s' }], more: 0 }],
    },
  ],
};

test('rows in which the runs differ come first, each cell beside the greatest', () => {
  const rows = comparedRows(answer, false);
  assert.deepEqual(
    rows.map(({ name, differs }) => [name, differs]),
    [
      ['steps', true],
      ['roots.freed', true],
      ['roots.built', true],
      ['modes.changed', false],
    ],
  );
  assert.deepEqual(rows[0]!.cells, [
    { words: '4,000', share: 1 },
    { words: '1,000', share: 0.25 },
  ]);
  assert.deepEqual(rows[2]!.cells[0], { words: 'not told', share: undefined });
});

test('for each change of mode all other rows are divided by it', () => {
  assert.deepEqual(modeChanges(answer), [20, 20]);
  const rows = comparedRows(answer, true);
  assert.deepEqual(
    rows.map(({ name }) => name),
    ['steps', 'roots.freed', 'roots.built'],
  );
  assert.deepEqual(
    rows[1]!.cells.map(({ words }) => words),
    ['1.00', '0.00'],
  );
  assert.equal(modeChanges({ ...answer, rows: [{ name: 'modes.changed', values: [0, 0] }] }), undefined);
  assert.equal(modeChanges({ ...answer, rows: [] }), undefined);
});

test('what the runs leave is the same, differs in leaves, or in tables alone', () => {
  assert.equal(tablesWords(answer, 0), 'today leaves other leaves than before.');
  const [table] = answer.tables;
  const none = [{ column: 1, lines: [], more: 0 }];
  const words = (hashes: (string | null)[]): string =>
    tablesWords({ ...answer, tables: [{ ...table!, hashes, differences: none }] }, 0);
  assert.equal(words(['0x1', '0x1']), 'The runs leave the same tables.');
  assert.equal(words(['0x1', '0x2']), 'The runs leave the same leaves, in other tables.');
  assert.equal(words([null, null]), 'The runs leave the same tables.');
});
