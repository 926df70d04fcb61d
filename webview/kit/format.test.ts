import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatAddress, formatBits, formatIndices, formatSize, parseAddress } from './format.ts';

test('addresses are grouped by four digits, without leading zeros', () => {
  assert.equal(formatAddress('0xffff888000000000'), 'ffff_8880_0000_0000');
  assert.equal(formatAddress('0x00200000'), '20_0000');
  assert.equal(formatAddress(0x12345n), '1_2345');
});

test('a short address keeps 0x, for nothing else tells it from a decimal number', () => {
  assert.equal(formatAddress('0x1000'), '0x1000');
  assert.equal(formatAddress('0x0'), '0x0');
});

test('sizes are exact, in the largest unit that needs no more than one decimal', () => {
  const written = [0, 512, 4096, 3 * 4096, 2 ** 21, 2 ** 21 - 4096, 2 ** 30, 511 * 2 ** 39, 2 ** 48].map(formatSize);
  assert.deepEqual(written, ['0', '512', '4K', '12K', '2M', '2044K', '1G', '255.5T', '256T']);
});

test('runs are written with their first and last index, bits with the high one first', () => {
  assert.deepEqual([formatIndices(2, 1), formatIndices(0, 512)], ['2', '0–511']);
  assert.deepEqual([formatBits([7, 7]), formatBits([51, 12])], ['7', '51:12']);
});

test('an address may be typed with or without 0x, groups and a space’s name', () => {
  for (const text of ['0x401000', '401000', '40_1000', ' gpa:0x40_1000 ', '0X401000'])
    assert.deepEqual(parseAddress(text), { address: '0x401000' }, text);
});

test('what is no address is refused with a reason', () => {
  for (const [text, reason] of [
    ['', /Type an address/],
    ['kernel', /“kernel” is not an address/],
    ['1_0000_0000_0000_0000', /more than 64 bits/],
  ] as const) {
    const parsed = parseAddress(text);
    assert.match('error' in parsed ? parsed.error : '', reason);
  }
});
