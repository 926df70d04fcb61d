import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { RootCacheMoment } from '../../engine/queries/answers.ts';
import { placeOfMoment } from '../kit/timeline.ts';
import { causeWords, changeWords, momentSentence, momentsOf, timelineMoments } from './moments.ts';

const A = { hpa: '0x1001000', pgd: '0xfff000' };
const B = { hpa: '0x1009000', pgd: '0xbff000' };
const WP = 'cr0 0x80050033 → 0x80040033';
const moment = (roots: readonly (typeof A | null)[], changes: Partial<RootCacheMoment> = {}): RootCacheMoment => ({
  step: 148,
  vcpu: 0,
  mmu: 'root',
  by: 'vCPU 0',
  rootRole: '0x3704',
  roots: [0, 1, 2, 3].map((place) => roots[place] ?? null),
  ...changes,
});

test('moments stand equally far apart, and where another register write begins is told', () => {
  const list = [moment([]), moment([A]), moment([], { cause: WP }), moment([B], { cause: WP })];
  assert.deepEqual(
    timelineMoments(list).map(({ begins }) => begins),
    [true, false, true, false],
  );
  assert.equal(timelineMoments(list)[1]!.sentence, momentSentence(list[1]!, list[0]));
  assert.deepEqual(
    list.map((_, index) => placeOfMoment(index, list.length)),
    [0, 1 / 3, 2 / 3, 1],
  );
  assert.equal(placeOfMoment(0, 1), 1);
  assert.deepEqual(timelineMoments([]), []);
});

test('each vCPU has its own', () => {
  const list = [moment([A]), moment([B], { vcpu: 1 })];
  assert.deepEqual(momentsOf(list, { vcpu: 1, mmu: 'root' }), [list[1]]);
});

test('the register write is told with its values grouped', () => {
  assert.equal(causeWords(moment([], { cause: WP })), 'cr0 8005_0033 → 8004_0033');
  assert.equal(causeWords(moment([])), undefined);
});

test('what changed is told root by root', () => {
  const changes = (before: readonly (typeof A | null)[], after: readonly (typeof A | null)[]) =>
    changeWords(moment(after), moment(before));
  assert.equal(changes([], [A]), 'a root is taken at hpa 100_1000');
  assert.equal(
    changes([A], [null, A]),
    'the current root becomes previous 1; there is no current root until the vCPU enters the guest',
  );
  assert.equal(changes([A, B], [B, A]), 'previous 1 becomes the current root; the current root becomes previous 1');
  assert.equal(
    changes([A, B], []),
    'the current root is given up; a previous root is given up; there is no current root until the vCPU enters the guest',
  );
  assert.equal(changes([A], [A]), 'the processor’s role changes; the roots stay');
  assert.equal(changes([A, B], [A, null, B]), 'the previous roots change places');
  assert.equal(
    changeWords(moment([A], { rootRole: '0x1704' }), moment([A])),
    'the wanted role changes from 0x3704 to 0x1704',
  );
});

test('the first moment has nothing before it', () => {
  assert.equal(
    momentSentence(moment([]), undefined),
    'The vCPU gets its role; there is no root yet (vCPU 0, step 148).',
  );
  assert.equal(
    momentSentence(moment([A], { cause: WP }), moment([])),
    'After cr0 8005_0033 → 8004_0033: a root is taken at hpa 100_1000 (vCPU 0, step 148).',
  );
});
