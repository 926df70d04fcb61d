import assert from 'node:assert/strict';
import { test } from 'node:test';
import { allowed } from './shadow-events.ts';

// What of KVM's events is allowed beside the engine's, and what is not.

const ENGINE = [
  '#PF 0x1000',
  'get_page 0x2: existing',
  'sync_page 0x3: unsync',
  'set_spte 0x4',
  '#PF 0x5000',
  'set_spte 0x5',
];
const RELEASE = [6, 13];

test('a fault that mmu_sync_children has tried again is told twice', () => {
  const again = [...ENGINE];
  again.splice(3, 0, '#PF 0x1000', 'get_page 0x2: existing');
  assert.deepEqual(allowed(ENGINE, again, RELEASE), ENGINE);
});

test('nothing else that is told twice is let pass', () => {
  for (const [at, ...more] of [
    [3, '#PF 0x2000', 'get_page 0x2: existing'],
    [3, '#PF 0x1000', 'get_page 0x7: new'],
    [4, '#PF 0x1000', 'get_page 0x2: existing'],
    [3, 'get_page 0x2: existing'],
    [5, '#PF 0x1000'],
  ] as const) {
    const other = [...ENGINE];
    other.splice(at, 0, ...(more as readonly string[]));
    assert.deepEqual(allowed(ENGINE, other, RELEASE), other, more.join());
  }
});
