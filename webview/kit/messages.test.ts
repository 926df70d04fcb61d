import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseEvent } from './messages.ts';

test('events of the session are let through', () => {
  assert.deepEqual(parseEvent({ type: 'running' }), { type: 'running' });
  assert.deepEqual(parseEvent({ type: 'ended', more: 1 }), { type: 'ended' });
  const stop = { reason: 'step', sentence: 'vCPU 0: line 3 is next.', task: 0, taskName: 'vCPU 0', step: 1 };
  assert.deepEqual(parseEvent({ type: 'stopped', stop }), { type: 'stopped', stop });
});

test('anything else is not', () => {
  for (const message of [
    undefined,
    null,
    1,
    'running',
    [],
    {},
    { type: 'stop' },
    { type: 'stopped' },
    { type: 'stopped', stop: {} },
    { type: 'changed' },
  ])
    assert.equal(parseEvent(message), undefined, JSON.stringify(message));
});

test('of changed answers, those that are none are left out', () => {
  const error = { kind: 'error', message: 'there is no vCPU 9' };
  const event = parseEvent({
    type: 'changed',
    answers: [
      { id: 'a', answer: error },
      { id: 1, answer: error },
      { id: 'b', answer: { kind: 'unheard of' } },
      { id: 'c', answer: { kind: 'table' } },
      null,
    ],
  });
  assert.deepEqual(event, { type: 'changed', answers: [{ id: 'a', answer: error }] });
});

test('a table that another view asks to see is let through, and checked like a question', () => {
  const table = { kind: 'table', space: 'second', vcpu: 0, table: '0x1001000', level: 4, base: '0x0' };
  assert.deepEqual(parseEvent({ type: 'show-table', table }), { type: 'show-table', table });
  for (const wrong of [undefined, {}, { ...table, table: 4096 }, { ...table, level: 9 }, { ...table, space: 'disk' }])
    assert.equal(parseEvent({ type: 'show-table', table: wrong }), undefined, JSON.stringify(wrong));
});

test('a root cache without its lists is none', () => {
  const changed = (answer: object) => parseEvent({ type: 'changed', answers: [{ id: 'a', answer }] });
  const whole = { kind: 'root-cache', vcpus: [], pages: [], moments: [] };
  assert.deepEqual(changed(whole), { type: 'changed', answers: [{ id: 'a', answer: whole }] });
  assert.deepEqual(changed({ ...whole, moments: undefined }), { type: 'changed', answers: [] });
});

test('answers about memory without their lists are none', () => {
  const changed = (answer: object) => parseEvent({ type: 'changed', answers: [{ id: 'a', answer }] });
  for (const whole of [
    { kind: 'attributes', facts: [], runs: [] },
    { kind: 'attribute-map', slots: [], stages: [], moments: [] },
    { kind: 'page', rows: [] },
  ]) {
    assert.deepEqual(changed(whole), { type: 'changed', answers: [{ id: 'a', answer: whole }] });
    for (const name of Object.keys(whole).slice(1))
      assert.deepEqual(
        changed({ ...whole, [name]: undefined }),
        { type: 'changed', answers: [] },
        `${whole.kind} without ${name}`,
      );
  }
});
