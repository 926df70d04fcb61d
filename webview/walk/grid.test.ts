import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { WalkAnswer } from '../../engine/queries/answers.ts';
import { entry, walk } from '../kit/walk-fixture.ts';
import { fieldLevel, walkGrid } from './grid.ts';

/** A line for each row: its name and gpa, then each cell's number, `-` skipped, `.` not reached. */
function picture(answer: WalkAnswer): string[] {
  const sign = (cell: { state: string; reference?: { number: number } }) =>
    cell.state === 'reached' ? `${cell.reference!.number}` : cell.state === 'skipped' ? '-' : '.';
  return walkGrid(answer).rows.map(
    ({ name, gpa, second, guest }) =>
      `${name} ${gpa ?? '?'}: ${second.map(sign).join(' ')}${guest ? ` | ${sign(guest)}` : ''}`,
  );
}

const EPT = (level: number, state: 'table' | 'leaf' | 'absent') =>
  entry('ept', level, state, state === 'absent' ? '---' : 'rwx');
const rowOf = (forLevel: number) =>
  [4, 3, 2, 1].map((level) => ['second', level, forLevel, EPT(level, level === 1 ? 'leaf' : 'table')] as const);

test('a walk that ends at once leaves the grid empty behind it; CR3 says where the first table is', () => {
  const answer = walk([['second', 4, 4, EPT(4, 'absent')]], {
    outcome: { status: 'violation', gpa: '0x7000', reason: '' },
  });
  assert.deepEqual(picture(answer), [
    'PML4 0x7000: 1 . . . | .',
    'PDPT ?: . . . . | .',
    'PD ?: . . . . | .',
    'PT ?: . . . . | .',
    'page ?: . . . .',
  ]);
  assert.equal(fieldLevel(answer.references[0]!, answer), 4);
});

test('a cold walk makes its references row by row, 24 in all', () => {
  const references = [4, 3, 2, 1].flatMap((level) => [
    ...rowOf(level),
    ['guest', level, level, entry('x86-64', level, level === 1 ? 'leaf' : 'table', 'rwxu')] as const,
  ]);
  assert.deepEqual(picture(walk([...references, ...rowOf(0)])), [
    'PML4 0x7000: 1 2 3 4 | 5',
    'PDPT 0x7000: 6 7 8 9 | 10',
    'PD 0x7000: 11 12 13 14 | 15',
    'PT 0x7000: 16 17 18 19 | 20',
    'page 0x200000: 21 22 23 24',
  ]);
});

test('large pages of either stage make references needless', () => {
  const references = [
    ['guest', 4, 4, entry('x86-64', 4, 'table', 'rwxu')],
    ['guest', 3, 3, entry('x86-64', 3, 'table', 'rwxu')],
    ['guest', 2, 2, entry('x86-64', 2, 'leaf', 'rwxu')],
    ['second', 4, 0, EPT(4, 'table')],
    ['second', 3, 0, EPT(3, 'leaf')],
  ] as const;
  assert.deepEqual(picture(walk(references)).slice(2), [
    'PD 0x7000: . . . . | 3',
    'PT ?: - - - - | -',
    'page 0x200000: 4 5 - -',
  ]);
});

test('with paging off there is the page alone, without a second stage the guest alone', () => {
  assert.deepEqual(
    picture(walk(rowOf(0), { paging: false, address: '0x1234', outcome: { status: 'violation', reason: '' } })),
    ['page 0x1234: 1 2 3 4'],
  );
  const guest = [4, 3].map(
    (level) => ['guest', level, level, entry('x86-64', level, level === 3 ? 'absent' : 'table', 'rwxu')] as const,
  );
  assert.deepEqual(
    picture(walk(guest, { second: 'none', secondLevels: [], outcome: { status: 'guest-fault', reason: '' } })),
    ['PML4 0x7000:  | 1', 'PDPT 0x7000:  | 2', 'PD ?:  | .', 'PT ?:  | .', 'page ?: '],
  );
});
