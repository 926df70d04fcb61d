import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { WalkAnswer } from '../../engine/queries/answers.ts';
import { decidingFields, decidingWords } from './deciding.ts';
import { entry, walk } from './walk-fixture.ts';

const words = (answer: WalkAnswer) =>
  answer.references.map((reference) => decidingWords(reference, decidingFields(answer, reference)));
const fault = (reason: string, status: 'guest-fault' | 'violation' | 'misconfiguration' = 'guest-fault') => ({
  outcome: { status, reason },
});

test('a walk that succeeds was decided by no bit', () => {
  assert.deepEqual(words(walk([['guest', 4, 4, entry('x86-64', 4, 'table', 'r--s')]])), ['']);
});

test('an absent entry is decided by the bits that would make it present', () => {
  assert.deepEqual(
    words(
      walk(
        [
          ['guest', 4, 4, entry('x86-64', 4, 'table', 'rwxu')],
          ['guest', 3, 3, entry('x86-64', 3, 'absent', '----')],
        ],
        fault('PDPTE 0 is not present'),
      ),
    ),
    ['', 'P=0'],
  );
  assert.deepEqual(
    words(walk([['second', 4, 4, entry('ept', 4, 'absent', '---')]], fault('not present', 'violation'))),
    ['RWX=0'],
  );
});

test('a right may be missing above the entry where the walk ended', () => {
  const references = [
    ['guest', 2, 2, entry('x86-64', 2, 'table', 'r-xu')],
    ['second', 1, 1, entry('ept', 1, 'leaf', 'r--')],
    ['guest', 1, 1, entry('x86-64', 1, 'leaf', 'rwxs')],
  ] as const;
  assert.deepEqual(words(walk(references, { access: 'write', ...fault('W=0') })), ['W=0', '', '']);
  assert.deepEqual(words(walk(references, { access: 'write', cpl: 3, ...fault('W=0 and U=0') })), ['W=0', '', 'U=0']);
});

test('a fetch is refused by NX, SMEP and SMAP by U', () => {
  const leaf = [['guest', 1, 1, entry('x86-64', 1, 'leaf', 'rw-u')]] as const;
  assert.deepEqual(words(walk(leaf, { access: 'fetch', ...fault('NX=1') })), ['NX=1']);
  assert.deepEqual(words(walk(leaf, fault('CR4.SMAP forbids it'))), ['U=1']);
});

test('a second-stage refusal is decided by the entries that locate the same thing', () => {
  const references = [
    ['second', 1, 1, entry('ept', 1, 'leaf', 'r-x')],
    ['guest', 1, 1, entry('x86-64', 1, 'leaf', 'r--s')],
    ['second', 1, 0, entry('ept', 1, 'leaf', 'r-x')],
  ] as const;
  assert.deepEqual(words(walk(references, { access: 'write', ...fault('does not allow writing', 'violation') })), [
    '',
    '',
    'W=0',
  ]);
});

test('of a malformed entry the fields that the problem names', () => {
  const malformed = (problem: string) =>
    words(walk([['guest', 1, 1, entry('x86-64', 1, 'malformed', 'rwxu', [problem])]], fault('malformed')));
  assert.deepEqual(malformed('reserved bits 54:53 set'), ['available']);
  assert.deepEqual(
    words(
      walk(
        [['second', 1, 1, entry('ept', 1, 'malformed', '-w-', ['writable but not readable'])]],
        fault('', 'misconfiguration'),
      ),
    ),
    ['X=0 W=1 R=0'],
  );
});
