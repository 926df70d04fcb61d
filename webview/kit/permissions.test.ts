import assert from 'node:assert/strict';
import { test } from 'node:test';
import { COLOURS, lookOf, lookOfRights, PATTERNS, rightsWords } from './permissions.ts';

test('each combination of rights has its own colour and its own pattern', () => {
  const kinds = ['r--', 'rw-', 'r-x', 'rwx'].map((rights) => lookOfRights(rights).kind);
  assert.deepEqual(kinds, ['r', 'rw', 'rx', 'rwx']);
  assert.equal(new Set(kinds.map((kind) => COLOURS[kind])).size, 4);
  assert.equal(new Set(kinds.map((kind) => JSON.stringify(PATTERNS[kind]))).size, 4);
});

test('red is not a colour of rights: the accent means here and now', () => {
  for (const colour of Object.values(COLOURS)) assert.doesNotMatch(colour, /red/);
});

test('absent and malformed look like neither rights nor each other, whatever the rights', () => {
  assert.equal(lookOf({ state: 'absent', rights: 'rwx' }).kind, 'absent');
  assert.equal(lookOf({ state: 'malformed', rights: 'rwx' }).kind, 'malformed');
  assert.notDeepEqual(PATTERNS.malformed, PATTERNS.rwx);
});

test('an execute-only entry is drawn as executable, one without rights as allowing nothing', () => {
  assert.equal(lookOfRights('--x').kind, 'rx');
  assert.equal(lookOfRights('---').kind, 'none');
});

test('user and supervisor are told apart where the format does', () => {
  assert.deepEqual(
    ['rwxu', 'rwxs', 'rwx'].map((rights) => [rightsWords({ state: 'leaf', rights }), lookOfRights(rights).user]),
    [
      ['rwx user', true],
      ['rwx sup', false],
      ['rwx', false],
    ],
  );
});
